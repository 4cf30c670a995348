"""What is judged: folders of several channels as they are written, and text models asked for real texts."""

from dataclasses import replace

import pytest
import torch

from verisim.cli.main import main
from verisim.data.spec import Images, ImageSpec
from verisim.data.writers import write_samples
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, save_model
from verisim.models import build_model
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import from_model, open_source, reads_texts
from verisim.tasks.utility import labelled_source
from verisim.training.source import DataSettings, open_dataset

TEXT = {"channels": (8, 16), "blocks": 1, "attention": (False, True), "head_channels": 8, "steps": 2, "text": "words",
        "text_words": 60, "text_length": 32, "text_width": 8, "text_depth": 1}  # fmt: skip


def levels(n, channels, size=(16, 16)):
    """Images whose values are 8-bit levels."""
    x = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Images(x, ImageSpec(size, channels), torch.arange(n) % 2).quantise()


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("names", [(), ("T1", "T2", "FLAIR")])
def test_channels_written_one_by_one_are_read_again(tmp_path, channels, names):
    """Under the contrasts' names, or as c0, c1: the same values; colour without names stays one file."""
    images = levels(6, channels)
    names = names[:channels]
    write_samples(tmp_path / "made", images, {"model": "x"}, contrasts=names)
    found = open_source(str(tmp_path / "made"), 6, images, contrasts=names)
    torch.testing.assert_close(found.images.pixels, images.pixels, atol=1e-6, rtol=0)


def test_volumes_and_other_names(tmp_path):
    """NIfTI volumes keep their grey values; columns of unknown names are asked for by name."""
    images = levels(3, 2, (8, 8, 8))
    write_samples(tmp_path / "made", images, {"model": "x"}, contrasts=("T1", "T2"))
    found = open_source(str(tmp_path / "made"), 3, images, contrasts=("T1", "T2"))
    torch.testing.assert_close(found.images.pixels, images.pixels, atol=1e-6, rtol=0)
    swapped = open_source(str(tmp_path / "made"), 3, images, contrasts=("T2", "T1"))
    assert torch.equal(swapped.images.pixels, found.images.pixels.flip(1))
    with pytest.raises(VerisimError, match=r"have 2 channels; .* by the columns T1, FLAIR\.$"):
        open_source(str(tmp_path / "made"), 3, images, contrasts=("T1", "FLAIR"))
    with pytest.raises(VerisimError, match=r"have 2 channels; .* by the columns c0, c1\.$"):
        open_source(str(tmp_path / "made"), 3, images)


def test_the_commands_read_them(tmp_path, capsys):
    """evaluate on a folder of two contrasts, and utility's labels with them."""
    data = DataSettings("", "brain", 120, 16, contrasts="T1,T2", label="label")
    dataset = open_dataset(data)
    made = dataset["train"].subset(torch.arange(40))
    folder = tmp_path / "made"
    write_samples(folder, made, {"model": "x"}, class_names=dataset.class_names, contrasts=dataset.contrasts)
    found = labelled_source(str(folder), 40, dataset, "label", 0)
    assert sorted(found.images.labels.tolist()) == sorted(made.labels.tolist())
    assert found.images.spec.channels == 2
    told = ["--data.phantom=brain", "--data.count=120", "--data.size=16", "--data.contrasts=T1,T2"]
    assert main(["evaluate", str(folder), *told, "--quick", "--out", str(tmp_path / "judged")]) == 0
    assert (tmp_path / "judged" / "results.json").exists()
    capsys.readouterr()


@pytest.fixture(scope="module")
def reports():
    return open_dataset(DataSettings("", "chest_findings", 40, 16, label="label", text="report"))


def text_model(folder, dataset):
    """A model whose network was filled, so that texts change something."""
    torch.manual_seed(0)
    model = build_model("diffusion", TEXT, dataset["train"].spec)
    model.learn_texts(dataset["train"].texts)
    for p in model.net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    save_model(folder / "w.safetensors", model, ModelCard("diffusion", TEXT, dataset["train"].spec))
    return folder / "w.safetensors"


def test_text_models_are_asked_for_real_texts(tmp_path, reports):
    """With texts they are asked for them, without they draw without; a cache of the one is not taken for the other."""
    path, real, cache = text_model(tmp_path, reports), held_out(reports), tmp_path / "cache.safetensors"
    assert reads_texts(path)
    asked = from_model(path, "t", 11, real, cache=cache)
    again = from_model(path, "t", 11, real, cache=cache)
    assert torch.equal(asked.images.pixels, again.images.pixels)
    plain = from_model(path, "t", 11, replace(real, texts=None), cache=cache)
    assert asked.facts["texts"] == "of real images" and plain.facts["texts"].startswith("none")
    assert not torch.allclose(asked.images.pixels, plain.images.pixels, atol=0.01)
    assert len(asked.images.labels) == 11 and plain.images.labels is None
    counts = torch.bincount(real.labels, minlength=2)
    assert (
        asked.images.labels[: len(real)].bincount(minlength=2).equal(counts)
    )  # each text once before any twice


def test_usefulness_of_text_models(tmp_path, reports):
    """Asked for the training texts, their images have the labels of those; without texts the classes are missed."""
    path = text_model(tmp_path, reports)
    found = labelled_source(str(path), 32, reports, "label", 0)
    assert found.images.labels.bincount(minlength=2).equal(reports["train"].labels.bincount(minlength=2))
    bare = replace(reports, splits={k: replace(v, texts=None) for k, v in reports.splits.items()})
    with pytest.raises(VerisimError, match="knows other classes than the real images"):
        labelled_source(str(path), 32, bare, "label", 0)
