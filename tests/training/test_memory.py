"""Counting memory: closed forms, counts without contents against real ones, checkpointing, size, precision."""

import json

import pytest
import torch
from torch import nn

from verisim.cli.main import main
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.nets.guided_unet import GuidedUNet
from verisim.nets.unet import UNet
from verisim.training.memory import Ledger, count_forward, count_step, weightless, with_saved_bytes
from verisim.training.resources import measure

SMALL = {
    "diffusion": {"channels": (8, 16), "blocks": 1, "attention": (False, True), "head_channels": 8},
    "conv_vae": {"width": 8, "max_width": 16, "latent": 8},
    "dcgan": {"nf": 8, "latent": 8},
    "gated_pixelcnn": {"layers": 2, "channels": 8, "components": 2},
}


def test_saved_bytes_of_a_closed_form():
    """exp keeps its result, a product both factors: counted once each, weights not at all."""
    w = torch.randn(1000, requires_grad=True)
    v = torch.randn(1000)

    def forward():
        return (w.exp() * v).sum()

    assert with_saved_bytes(forward)[1] == 4 * 2000  # exp(w), which the product keeps too, and v
    assert with_saved_bytes(forward, without=[v])[1] == 4 * 1000
    assert with_saved_bytes(lambda: (w * v).view(10, 100).sum(), without=[w])[1] == 4 * 1000


def test_ledger_forgets_what_is_gone():
    """Three temporaries in a row: two alive at most, one at the end."""
    with Ledger() as ledger:
        a = torch.zeros(1000)
        for _ in range(3):
            a = a + 1
    assert ledger.peak == 8000 and ledger.live == 4000
    view = a.view(10, 100)
    del a
    assert ledger.live == 4000  # a view keeps its storage
    del view
    assert ledger.live == 0


def model_of(name, **more):
    torch.manual_seed(0)
    model = build_model(name, {**SMALL[name], **more}, ImageSpec((16, 16)))
    x = torch.rand(2, 1, 16, 16) * 2 - 1
    model.prepare(x)
    return model, x


@pytest.mark.parametrize("name", sorted(SMALL))
def test_counts_without_contents_are_the_real_ones(name):
    """Saved bytes and peaks of a copy without contents equal those of a real run, byte for byte."""
    model, x = model_of(name)
    real = count_step(lambda: model.trial_loss(x, None), model.parameters())
    forward = count_forward(lambda: model.trial_loss(x, None), model.parameters())
    with weightless(model, x) as (hollow, (images,)):
        assert count_forward(lambda: hollow.trial_loss(images, None), hollow.parameters()) == forward
        assert count_step(lambda: hollow.trial_loss(images, None), hollow.parameters()) == real
    assert real.peak > real.saved / 2 > 0


def test_checkpointing_is_seen():
    """Fewer bytes are kept, but what is computed again counts: the peak lies between what is kept and the peak without."""
    plain, x = model_of("diffusion", blocks=3)
    again, _ = model_of("diffusion", blocks=3, checkpointing=True)
    a, b = (count_step(lambda m=m: m.trial_loss(x, None), m.parameters()) for m in (plain, again))
    assert b.saved < a.saved / 4
    assert 1.5 * b.saved < b.peak < 0.8 * a.peak


def kept(net, side, bf16=False):
    """Bytes kept of one volume of side^3 with eight channels, without allocating them."""
    with weightless(net, torch.zeros(1)) as (hollow, (step,)):
        x = torch.empty(1, 8, side, side, side)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return with_saved_bytes(lambda: hollow(x, step).float().square().mean(), hollow.parameters())[1]


def test_memory_grows_with_the_voxels():
    """A volume of twice the side keeps eight times as much (spec 002, D.9: 8 +- 0.5), about half in bfloat16."""
    torch.manual_seed(0)
    net = UNet(3, 8, 1, (8, 16), 1, (False, False), skip="average")
    assert kept(net, 32) / kept(net, 16) == pytest.approx(8, abs=0.5)
    assert 0.4 < kept(net, 32, bf16=True) / kept(net, 32) < 0.75


def test_the_sources_network():
    """24,260,299 parameters keep 10.5 GiB at 128^3 and 84 GiB at 256^3 (spec 002, D.6); nothing is allocated."""
    torch.manual_seed(0)
    net = GuidedUNet(3, 8)
    assert sum(p.numel() for p in net.parameters()) == 24_260_299
    small, large = kept(net, 128) / 2**30, kept(net, 256) / 2**30
    assert small == pytest.approx(10.5, abs=0.05) and large == pytest.approx(84, abs=0.2)


class Asks(nn.Module):
    """A model whose loss depends on a value."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def prepare(self, x):
        pass

    def trial_loss(self, x, label):
        y = self.net(x.mean().view(1, 1)).sum()
        return y if float(y.detach()) > -1e9 else 2 * y


def test_losses_that_ask_for_values_are_run(monkeypatch):
    """They are counted by running them, and refused where they cannot be."""
    found = measure(Asks(), torch.zeros(1, 1, 16, 16), 2, timed=0)
    assert found.allocated and found.seconds is None and found.saved_bytes > 0
    monkeypatch.setattr("verisim.training.resources.free_bytes", lambda device: 1000)
    with pytest.raises(VerisimError, match=r"depends on values.*smaller --data.size"):
        measure(Asks(), torch.zeros(1, 1, 16, 16), 2, timed=0)
    model, x = model_of("conv_vae")
    assert measure(model, x[:1], 2).seconds is None  # does not fit: counted, not timed


def test_profile_command(tmp_path, capsys):
    """Any recipe, a table and JSON; a batch twice as large keeps about twice as much."""
    out = tmp_path / "p.json"
    found = []
    for batch in (1, 2):
        common = ["profile", "X-V-fix", "--data.size", "16", "--steps", "0", "--out", str(out)]
        assert main([*common, "--training.batch_size", str(batch), "--training.precision", "float32"]) == 0
        found.append(json.loads(out.read_text())["resources"])
    assert found[0]["parameters"] == found[1]["parameters"] > 0
    assert found[1]["shape"] == [2, 1, 16, 16] and found[0]["seconds"] is None and not found[0]["allocated"]
    assert 1.8 < found[1]["saved_bytes"] / found[0]["saved_bytes"] < 2.1
    assert found[0]["training_bytes"] > 4 * 4 * found[0]["parameters"]  # weights, gradients, two moments
    assert "kept for the backward pass" in capsys.readouterr().out
    assert main(["profile", "X-V-fxi"]) == 2


@pytest.mark.parametrize("train_on", ["patch", "full", "half"])
def test_trial_steps_of_segmenters_hold_what_training_steps_hold(train_on):
    """The same kept, and the same at once but for the mask, which training is given: of a crop, not the whole volume."""
    torch.manual_seed(0)
    settings = {"channels": (4, 8), "patch": 8, "blocks": 1, "train_on": train_on}
    model = build_model("diffusion_segmentation", settings, ImageSpec((16, 16, 16), 4))
    x = torch.rand(1, 4, 16, 16, 16) * 2 - 1
    trial = count_step(lambda: model.trial_loss(x, None), model.parameters())
    model.zero_grad()  # else the second step finds its gradients allocated
    real = count_step(lambda: model.mask_loss(x, (x[:, :1] > 0).float())[0].mean(), model.parameters())
    assert trial.saved == real.saved and 0 <= real.peak - trial.peak <= x[:, :1].nbytes


def test_patches_of_the_sources_network_need_an_eighth(tmp_path):
    """PatchDDM against FullRes at 256^3, counted without allocating: at most a seventh (spec 002, D)."""
    kept = {}
    for name in ("B-D", "B-E"):
        out = tmp_path / f"{name}.json"
        options = [
            "--variant",
            "source",
            "--steps",
            "0",
            "--training.precision",
            "float32",
            "--out",
            str(out),
        ]
        assert main(["profile", name, *options]) == 0
        found = json.loads(out.read_text())["resources"]
        assert not found["allocated"]
        kept[name] = found["saved_bytes"] / 2**30
    assert kept["B-D"] == pytest.approx(10.5, abs=0.05) and kept["B-E"] == pytest.approx(84, abs=0.5)
    assert kept["B-D"] < kept["B-E"] / 7
