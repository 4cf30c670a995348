"""A batch in parts gives the step of the whole batch, and a compiled network that of the plain one."""

import pytest
import torch
from torch import nn
from torch._dynamo import register_backend

from verisim.data.spec import Images, ImageSpec
from verisim.data.stream import BatchStream
from verisim.errors import VerisimError
from verisim.models import MODELS
from verisim.models.base import GenerativeModel
from verisim.training.compiling import compile_network
from verisim.training.estimate import estimate
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x):
        return self.last(self.first(x).relu())


class Smoother(GenerativeModel):
    """No noise and no batch statistics: what a step does depends on the images alone."""

    family = "smoother"

    def __init__(self, spec: ImageSpec, num_classes: int = 0) -> None:
        super().__init__(spec, num_classes)
        self.net = Net()
        self.noise: list[float] = []  # one number of each part

    def training_loss(self, x, label):
        self.noise.append(float(torch.rand(())))
        return (self.net(x) - x).square().flatten(1).mean(1), {}

    def sample(self, n, condition=None, generator=None):
        return torch.zeros(n, *self.spec.shape)

    def optimizer(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


PLAN = ModelPlan("smoother", {})


@pytest.fixture
def smoother(monkeypatch):
    monkeypatch.setitem(MODELS, "smoother", f"{__name__}:Smoother")
    return Smoother


@pytest.fixture
def images():
    return Images(
        torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1, ImageSpec((8, 8))
    )


def trained(folder, images, plan=PLAN, resume=False, **changes):
    base = {
        "max_steps": 12,
        "batch_size": 8,
        "sample_minutes": 0.0,
        "precision": "float32",
        "checkpoint_steps": 5,
    }
    run = RunFolder(folder)
    if not resume:
        run.create({})
    return train(run, plan, images, TrainSettings(**{**base, **changes}), resume=resume, quiet=True).model


def test_parts_give_the_step_of_the_whole_batch(smoother, images, tmp_path):
    """Same weights, average, number of steps and metrics; half as many parts as steps would be a control that fails."""
    whole = trained(tmp_path / "whole", images)
    parts = trained(tmp_path / "parts", images, accumulate=4)
    fewer = trained(tmp_path / "fewer", images, batch_size=2)  # what one part alone would do
    assert whole.step == parts.step == 12 and len(parts.noise) == 48
    assert len(set(parts.noise)) == 48 and whole.noise == parts.noise[::4]  # each part draws noise of its own
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(fewer.net.first.weight, whole.net.first.weight, atol=1e-4)
    lines = [(tmp_path / n / "metrics.jsonl").read_text().splitlines() for n in ("whole", "parts")]
    assert len(lines[0]) == len(lines[1])


@pytest.mark.parametrize("at", [13, 27, 46])
def test_resume_between_parts_is_bit_identical(smoother, images, tmp_path, monkeypatch, at):
    """Killed in any part of any step, the run goes on from the last whole step to the same bits."""
    whole = trained(tmp_path / "a", images, accumulate=4)
    loss = Smoother.training_loss

    def dies(self, x, label):
        if len(self.noise) == at:
            raise KeyError("killed")
        return loss(self, x, label)

    monkeypatch.setattr(Smoother, "training_loss", dies)
    with pytest.raises(KeyError):
        trained(tmp_path / "b", images, accumulate=4)
    monkeypatch.setattr(Smoother, "training_loss", loss)
    again = trained(tmp_path / "b", images, accumulate=4, resume=True)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_the_stream_cuts_batches(images):
    whole = list(BatchStream(images, 8, 3, lambda: 0))
    parts = list(BatchStream(images, 8, 3, lambda: 0, parts=2))
    assert [len(p["image"]) for p in parts] == [4] * 6
    for k, batch in enumerate(whole):
        assert torch.equal(torch.cat([p["image"] for p in parts[2 * k : 2 * k + 2]]), batch["image"])
    later = list(BatchStream(images, 8, 3, lambda: 2, parts=2))
    assert torch.equal(later[0]["image"], parts[4]["image"]) and len(later) == 2


def test_what_cannot_be_cut_is_refused(smoother, images, tmp_path):
    with pytest.raises(
        VerisimError, match=r"batch_size is 8, which cannot be cut into training\.accumulate = 3"
    ):
        trained(tmp_path / "odd", images, accumulate=3)
    plan = ModelPlan("intro_vae", {"channels": (4, 4), "latent": 2})
    with pytest.raises(VerisimError, match=r"training\.accumulate does not work for a IntroVAE"):
        trained(tmp_path / "gan", images, plan=plan, accumulate=2)


def test_the_estimate_counts_a_part_in_memory_and_all_in_time(smoother, images, monkeypatch):
    dataset = type("D", (), {"splits": {"train": images}, "class_names": ()})()
    one, four = (
        estimate(PLAN, dataset, TrainSettings(max_steps=10, batch_size=32, accumulate=k, precision="float32"))
        for k in (1, 4)
    )
    assert four.training_bytes < 0.5 * one.training_bytes


def test_a_compiled_network_takes_the_same_steps(smoother, images, tmp_path):
    """With a backend that changes nothing, the same bits and the same names; an unknown one is named."""
    seen = []

    @register_backend(name="plain")
    def backend(graph, inputs):
        seen.append(len(inputs))
        return graph.forward

    plain, compiled = trained(tmp_path / "a", images), trained(tmp_path / "b", images, compile="plain")
    assert seen and all(torch.equal(v, compiled.state_dict()[k]) for k, v in plain.state_dict().items())
    with pytest.raises(VerisimError, match=r"backend of torch\.compile.*indctor.*inductor"):
        trained(tmp_path / "c", images, compile="indctor")
    model = Smoother(ImageSpec((8, 8)))
    model.net = nn.Sequential(nn.Conv2d(1, 1, 3))
    with pytest.raises(VerisimError, match=r"passes over a network that is a plain Sequential"):
        compile_network(model, "plain")


def test_a_compiler_that_fails_is_explained(smoother, images, tmp_path):

    @register_backend(name="broken")
    def broken(graph, inputs):
        raise OSError("no compiler found")

    with pytest.raises(
        VerisimError, match=r"torch\.compile with backend broken failed.*Leave out --training\.compile"
    ):
        trained(tmp_path, images, compile="broken")


def test_too_little_memory_is_said(tmp_path, toy, noise_images, monkeypatch):
    """The allocator's words become one sentence with the settings that help; other errors stay as they are."""

    def full(self, x, label):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    def broken(self, x, label):
        raise RuntimeError("something else")

    for k, (loss, kind, said) in enumerate(
        [
            (full, VerisimError, r"16 image.*\(20 GiB more were asked for\).*accumulate 2"),
            (broken, RuntimeError, "else"),
        ]
    ):
        monkeypatch.setattr(toy, "training_loss", loss)
        run = RunFolder(tmp_path / str(k))
        run.create({"model": {}, "data": {}, "training": {}})
        settings = TrainSettings(batch_size=16, max_steps=2, accelerator="cpu", precision="float32")
        with pytest.raises(kind, match=said):
            train(run, ModelPlan("toy", {}), noise_images, settings, quiet=True)
