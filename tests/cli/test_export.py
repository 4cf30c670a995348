"""A model in one file: the same images, half the size, and the weights that come with verisim."""

import pytest
import torch

from verisim.cli.main import main
from verisim.errors import CheckpointError, VerisimError
from verisim.hub import published
from verisim.hub.weights import load_model, read_card, resolve
from verisim.tasks.generation import generate


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny diffusion model, trained for two steps."""
    out = tmp_path_factory.mktemp("export") / "run"
    options = ["--data.size", "16", "--data.count", "20", "--training.max_steps", "2", "--training.max_minutes", "0",
               "--model.channels", "[16,16]", "--model.head_channels", "8", "--training.batch_size", "8"]  # fmt: skip
    assert main(["train", "X-D-fix", "--variant", "small", "--out", str(out), *options]) == 0
    return out


def images(source):
    model, card = load_model(source)
    return generate(model, card, 4, seed=3).images.pixels


def test_export_draws_the_same_images(run, tmp_path, capsys):
    """A full export is the run, bit by bit."""
    assert main(["export", str(run), "--out", str(tmp_path / "deep" / "m.safetensors")]) == 0
    assert "MB" in capsys.readouterr().out
    assert torch.equal(images(tmp_path / "deep" / "m.safetensors"), images(run))


def test_half_is_half_as_large_and_nearly_the_same(run, tmp_path):
    """bfloat16 halves the file; images stay close, and differ (or nothing was rounded)."""
    for name, flag in (("full", []), ("half", ["--half"])):
        assert main(["export", str(run), "--out", str(tmp_path / name), *flag]) == 0
    sizes = [(tmp_path / n).stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.62 * sizes[1]
    gap = (images(tmp_path / "half") - images(tmp_path / "full")).abs().mean()
    assert 0 < gap < 0.05


def test_published_weights_are_small_named_and_loadable():
    """Each file: at most 16 MB, recipe and size as in its name, samples finite and in range, no folder named."""
    found = published.published_weights()
    assert found
    for name, file in found.items():
        card = read_card(file)
        size = "x".join(map(str, card.spec.size)) if len(set(card.spec.size)) > 1 else str(card.spec.size[0])
        assert name == f"{card.recipe}.{size}px"
        assert file.stat().st_size <= 16e6
        assert "/" not in card.to_json().replace("\\/", "/")
        drawn = images(file)
        assert drawn.abs().max() <= 1 and drawn.std() > 0.2


def test_a_recipe_id_finds_its_published_weights(monkeypatch, tmp_path):
    """By id in any case or by full name; several sizes must be told apart."""
    one = published.published_weights()["X-D-fix.32px"]
    assert resolve("x-d-fix") == resolve("X-D-fix.32px") == one
    both = {"X-D-fix.32px": one, "X-D-fix.64px": one}
    monkeypatch.setattr(published, "published_weights", lambda: both)
    with pytest.raises(VerisimError, match=r"several sizes: X-D-fix\.32px, X-D-fix\.64px"):
        published.find_published("X-D-fix")


def test_unknown_name_lists_what_there_is():
    """The error names the weights that come with verisim."""
    with pytest.raises(CheckpointError, match=r"does not exist.*X-D-fix\.32px"):
        resolve("X-D-fxi")


def test_sample_works_out_of_the_box(tmp_path):
    """`verisim sample X-D-fix` needs no training; files say that they are synthetic."""
    assert main(["sample", "X-D-fix", "-n", "2", "--class", "pneumonia", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 3  # two images and the overview


def test_published_weights_can_be_judged():
    """`verisim evaluate X-D-fix` finds them; a name that is nothing gets one sentence."""
    from verisim.tasks.contestants import locate

    assert locate("X-D-fix") == (published.published_weights()["X-D-fix.32px"], True)
    with pytest.raises(VerisimError, match="does not exist"):
        locate("X-D-fxi")
