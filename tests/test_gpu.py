"""On a real GPU: `make test-gpu`. Left out where there is none, and by `make test`, whose numbers are the CPU's."""

import json
import os

import pytest
import torch
from tests.models.test_every_model import CLASSES, SAMPLERS, made

from verisim.cli.main import main
from verisim.hub.weights import load_model
from verisim.seeding import generator

pytestmark = pytest.mark.skipif(
    not (os.environ.get("VERISIM_TEST_GPU") and torch.cuda.is_available()),
    reason="needs a CUDA GPU and VERISIM_TEST_GPU=1 (make test-gpu)",
)

RECIPES = (  # one of every kind of model that trains by itself
    "X-D-fix", "X-G-fix", "X-A-fix", "X-V-fix", "X-V0", "X-A0", "K-S3", "K-S5", "K-S7", "K-S8", "K-X3", "16-F", "16-G",
    "16-I.2", "17-G.4", "W-C5e", "W-C5d", "B-A", "B-B", "B-D", "B-J", "B-L", "B-M", "X-B1", "X-B1-fc", "X-B3",
    "X-B3-vamp", "X-B3-flow",
)  # fmt: skip
DRAWS_NOTHING = ("B-A", "B-B", "B-D", "B-J")
BRIEF = ["--training.max_steps=3", "--training.max_minutes=0", "--training.sample_minutes=0"]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in full float32, so that a GPU can be compared with a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_the_cpu(name):
    """Noise and labels of the CPU give the CPU's images, but for rounding (which few pixels of 256 grey levels feel)."""
    label = torch.tensor([0, 1]) if CLASSES[name] else None
    here = made(name, classes=CLASSES[name]).eval()
    there = made(name, classes=CLASSES[name]).eval().cuda()
    a, b = here.sample(2, label, generator(1)), there.sample(2, label, generator(1))
    assert b.is_cuda and float(((a - b.cpu()).abs() < 1e-2).double().mean()) > 0.98


@pytest.mark.parametrize("recipe", RECIPES)
def test_trains_samples_and_goes_on(recipe, tmp_path):
    """`train` for three steps, `sample`, and three steps more, all where the GPU is."""
    run = str(tmp_path / "run")
    assert main(["train", recipe, "--variant", "small", "--out", run, "--data.count=80", *BRIEF]) == 0
    if recipe not in DRAWS_NOTHING:
        assert main(["sample", run, "-n", "2", "--out", str(tmp_path / "made")]) == 0
        assert load_model(run)[0].device.type == "cuda"
    assert main(["train", "--resume", run, "--training.max_steps=6"]) == 0
    assert load_model(run)[1].training["steps"] == 6


def test_judges_learn_there(tmp_path):
    """`evaluate` on the GPU: the judge tells what it tells on a CPU, real from real at chance and noise at once."""
    run = str(tmp_path / "run")
    assert main(["train", "X-V-fix", "--variant", "small", "--out", run, "--data.count=400", *BRIEF]) == 0
    assert main(["evaluate", run, "-n", "80", "--quick", "--out", str(tmp_path / "judged")]) == 0
    found = json.loads((tmp_path / "judged" / "results.json").read_text())["controls"]
    real, noise = (found[name]["c2st"]["auc"] for name in ("real", "noise"))
    assert noise["value"] > 0.99 and abs(real["value"] - 0.5) < 0.2


def test_compiled_training(tmp_path):
    """The compiler of PyTorch takes the network, and the run's weights load without it."""
    options = ["--training.compile=inductor", "--data.count=80", "--out", str(tmp_path / "run"), *BRIEF]
    assert main(["train", "X-D-fix", "--variant", "small", *options]) == 0
    assert load_model(tmp_path / "run")[1].training["steps"] == 3


def test_counted_memory_is_the_cards(tmp_path):
    """What `profile` counts without allocating is what CUDA's allocator holds, within a twentieth; 8 GiB are needed."""
    out = tmp_path / "profile.json"
    assert main(["profile", "B-F", "--variant", "source", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["resources"]
    counted = found["step_bytes"] + 4 * found["parameters"]
    assert found["seconds"] > 0 and 0.95 < found["gpu_bytes"] / counted < 1.05


@pytest.fixture
def little_memory():
    """At most 1 GiB of the GPU."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_too_little_memory_is_said(tmp_path, capsys, little_memory):
    """One sentence with what helps, for training and for sampling."""
    small = ["--variant", "small", "--data.count=400", "--data.size=64"]
    command = [
        "train",
        "X-D-fix",
        *small,
        "--model.patch=1",
        "--training.batch_size=256",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*command, *BRIEF]) == 2
    assert "--training.accumulate 2" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "other"), "--training.accumulate=32", *BRIEF]) == 0
