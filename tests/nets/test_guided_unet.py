"""The U-Net of source 002: its parameter counts, its memory, its skips."""

import math

import pytest
import torch

from verisim.errors import VerisimError
from verisim.nets.guided_unet import SOURCE, GuidedUNet, StepEmbedding

NARROW = tuple(18 * k for k in (1, 3, 4, 4, 4, 4, 4))


def small(dims=3, inputs=2, **settings):
    torch.manual_seed(0)
    return GuidedUNet(dims, inputs, **{"channels": (4, 8), "blocks": 1, **settings})


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"in_channels": 8}, 24_260_299),  # PatchDDM; spec 002, section C.3
        ({"in_channels": 5}, 24_257_950),  # FullRes, HalfRes
        ({"in_channels": 8, "skip": "sum"}, 24_260_299),  # a divisor has no parameters
        ({"in_channels": 8, "skip": "concat"}, 32_331_927),  # 32.3 M in D.6
        ({"in_channels": 8, "skip": "concat", "channels": NARROW}, 12_465_685),  # 12.5 M
        ({"in_channels": 8, "channels": (8, 16, 16), "blocks": 1}, 124_721),  # the toy of D.9
    ],
)
def test_parameter_counts(settings, count):
    """Exactly those of the source and its specification."""
    with torch.device("meta"):
        net = GuidedUNet(3, **settings)
    assert sum(p.numel() for p in net.parameters()) == count


def kept(net, size):
    """GiB that a forward pass keeps for the backward pass beside the weights, on the meta device."""
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    storages = {}

    def pack(t):
        storages[t.untyped_storage()._cdata] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(torch.zeros(1, 8, *[size] * 3, device="meta"), torch.zeros(1, device="meta"))
    return sum(s.nbytes() for place, s in storages.items() if place not in weights) / 2**30


def test_memory_of_the_source():
    """10.5 GiB for crops of 128, 1.5 times as much with concatenation, less with 18 channels (D.6)."""
    with torch.device("meta"):
        nets = [
            GuidedUNet(3, 8),
            GuidedUNet(3, 8, skip="concat"),
            GuidedUNet(3, 8, skip="concat", channels=NARROW),
        ]
    average, concat, narrow = (8 * kept(net, 64) for net in nets)  # 128^3 has eight times the voxels
    assert average == pytest.approx(10.5, abs=0.1) and concat == pytest.approx(15.7, abs=0.1)
    assert narrow == pytest.approx(9.8, abs=0.1) and SOURCE[0] / 18 == pytest.approx(1.61, abs=0.01)


@pytest.mark.parametrize(("skip", "f"), [("average", 2), ("root", math.sqrt(2)), ("sum", 1)])
def test_skips_by_hand(skip, f):
    """(h + s) / f, and its standard deviation for independent unit signals, sqrt(2) / f."""
    net = small(skip=skip)
    h, s = (torch.randn(2, 4, 20, 20, 20, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    assert torch.equal(net.join(h, s), (h + s) / f)
    assert float(net.join(h, s).std()) == pytest.approx(math.sqrt(2) / f, rel=0.02)
    assert net.join(h, s).shape == h.shape and small(skip="concat").join(h, s).shape[1] == 8


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("skip", ["average", "concat"])
def test_same_weights_any_multiple(dims, skip):
    """One net, several sizes; 0 at the start; every parameter but those behind zeroed ones has a gradient."""
    net = small(dims, skip=skip)
    for side in (2, 4, 8):
        x = torch.randn(2, 2, *[side] * dims)
        assert net(x, torch.tensor([0.0, 999.0])).shape == (2, 1, *[side] * dims)
        assert not net(x, torch.zeros(2)).any()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    net(x, torch.tensor([3.0, 500.0])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_checkpointing_changes_nothing_but_memory():
    """Same output and gradient, fewer bytes kept."""
    x, t = torch.randn(1, 2, 8, 8, 8), torch.tensor([5.0])
    found = []
    for flag in (False, True):
        net = small(checkpointing=flag, attention=(False, True))
        for p in net.parameters():
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1
        y = net(x, t)
        y.square().sum().backward()
        found.append((y.detach(), net.conv_in.weight.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_one_channel_per_group_hides_the_mean():
    """The source's norms take away what is constant over the image, so a shifted input gives the same answer away from
    the borders; with fewer groups the network sees the shift."""
    x, t = torch.randn(1, 2, 96, 96, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    change = {}
    for groups in (0, 1):
        net = small(2, channels=(4, 4), groups=groups)
        for p in net.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.2)
        apart = (net(x + 0.5, t) - net(x, t))[..., 16:-16, 16:-16]
        change[groups] = float(apart.mean().abs().detach())
    assert change[0] < 0.1 * change[1]


def test_embedding_of_an_odd_count():
    """14 cosines, 14 sines and one 0, frequencies 1 to 1e-4 (exclusive)."""
    e = StepEmbedding(29, 116)
    e.hidden = e.out = torch.nn.Identity()
    e.hidden.weight = torch.zeros(1)
    waves = e(torch.tensor([0.0, 1.0]))
    raw = torch.nn.functional.silu(torch.tensor([1.0] * 14 + [0.0] * 15))
    assert waves.shape == (2, 29) and torch.allclose(waves[0], raw)
    assert float(waves[1, -1]) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip": "mean"}, "Unknown skip 'mean'"),
        ({"channels": (4, 6)}, "multiples of the first"),
        ({"channels": ()}, "one width per level"),
        ({"blocks": 0}, "at least 1 per level"),
        ({"groups": 3}, "groups=3 does not divide"),
        ({"attention": (True,)}, "1 flags for 2 levels"),
        ({"dims": 4}, "must be 2 or 3"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(VerisimError, match=message):
        small(**settings)


def test_bad_input():
    with pytest.raises(VerisimError, match="multiple of 2"):
        small()(torch.zeros(1, 2, 5, 4, 4), torch.zeros(1))
    with pytest.raises(VerisimError, match="no classes"):
        small()(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1), torch.zeros(1))
