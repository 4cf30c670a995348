"""Comparing: held-out images only, sizes and names checked, caches reused."""

import json

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.metrics.protocols.fair import FairSettings
from verisim.phantoms import PHANTOMS
from verisim.tasks.comparison import compare, held_out
from verisim.tasks.contestants import Contestant, from_model, open_source
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.source import DataSettings, open_dataset
from verisim.training.train import ModelPlan, train

TINY = FairSettings(n_seeds=1, c2st_steps=20, bootstrap=50, networks=("pixels",), domain_steps=5)


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(DataSettings(count=200, size=16, label="label"))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("run") / "vae")
    folder.create({"data": {}})
    plan = ModelPlan("conv_vae", {"width": 8, "max_width": 16, "latent": 4})
    settings = TrainSettings(max_steps=5, batch_size=16, precision="float32")
    train(folder, plan, dataset["train"], settings, class_names=dataset.class_names, quiet=True)
    return folder


def test_numbers_are_json_and_ordered(dataset, run):
    """A real phantom set beats noise, and everything can be written as JSON."""
    real = PHANTOMS["chest"].make(100, seed=77, size=16).images.quantise()
    noise = Images(torch.rand(100, 1, 16, 16) * 2 - 1, real.spec).quantise()
    vae = from_model(run.path, "vae", 40, held_out(dataset))
    rows = [Contestant("phantoms", real), Contestant("static", noise), vae]
    results = compare(rows, dataset, TINY, anatomy="chest")
    json.dumps(results)
    fd = {n: r["fd"]["pixels"]["value"] for n, r in results["rows"].items()}
    assert fd["phantoms"] < fd["static"] / 3
    assert results["facts"]["vae"]["parameters"] > 0
    assert results["utility"]["static"]["value"] is None  # it has no labels, and says so
    assert "tstr" in results["utility"]["phantoms"]
    assert results["anatomy"]["real"]["laterality"]["mean"] > 0


def test_sampling_is_cached_by_weights(dataset, run, tmp_path):
    """The cache is reused for the same weights, and not for another number of images."""
    cache = tmp_path / "c.safetensors"
    a = from_model(run.path, "vae", 8, held_out(dataset), cache=cache)
    stamp = cache.stat().st_mtime_ns
    b = from_model(run.path, "vae", 8, held_out(dataset), cache=cache)
    assert cache.stat().st_mtime_ns == stamp and torch.equal(a.images.pixels, b.images.pixels)
    assert len(from_model(run.path, "vae", 9, held_out(dataset), cache=cache).images) == 9


def test_other_size_is_refused(run):
    """Judging 16-pixel samples against 32-pixel images would compare resolutions, not models."""
    other = Images(torch.zeros(4, 1, 32, 32), ImageSpec((32, 32)))
    with pytest.raises(VerisimError, match=r"--data\.size 16"):
        from_model(run.path, "vae", 4, other)


def test_two_sets_of_one_name(dataset):
    """Rows of a table need names of their own."""
    x = Contestant("a", dataset["test"])
    with pytest.raises(VerisimError, match="share a name"):
        compare([x, x], dataset, TINY)


def test_missing_source_is_named(dataset):
    """A path that is not there."""
    with pytest.raises(VerisimError, match="/nowhere does not exist"):
        open_source("/nowhere", 4, dataset["test"])


def test_no_held_out_images(dataset):
    """Without a test split there is nothing honest to compare with."""
    from dataclasses import replace

    with pytest.raises(VerisimError, match="no held-out images"):
        held_out(replace(dataset, splits={"train": dataset["train"]}))
