"""The network that FID is defined with: counts, pooling and resizing in closed form, files that are refused."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from verisim.cli.main import main
from verisim.data.spec import Images, ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.metrics.features import build, domain_features, save_features, with_stored
from verisim.metrics.inception import (
    BlockA,
    BlockC,
    BlockE,
    Inception,
    empty_inception,
    mean_pool,
    read_inception,
    tensorflow_resize,
)
from verisim.metrics.protocols.fair import FairSettings, _networks
from verisim.metrics.protocols.summary import measures


def images(n=3, channels=1, size=(16, 16), seed=0):
    x = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Images(x, ImageSpec(size, channels))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with random weights under the ports' names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Inception()
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(net.state_dict(), str(path))
    return path


def test_parameter_count():
    """23,850,960: torchvision's 23,834,568 without auxiliary head plus 8 more logits; Keras' 23,851,784 without
    gamma, with running statistics and 1000 classes describes the same convolutions."""
    net = empty_inception()
    total = sum(p.numel() for p in net.parameters())
    assert total == 23_850_960 == 23_834_568 + 8 * 2049
    conv = sum(p.numel() for n, p in net.named_parameters() if n.endswith("conv.weight"))
    normed = sum(p.numel() for n, p in net.named_parameters() if n.endswith("bn.bias"))
    assert conv + 3 * normed + 1000 * 2049 == 23_851_784
    assert len(net.state_dict()) == 94 * 6 + 2  # 94 convolutions


def test_sizes_on_the_way():
    """35 x 35 x 288, 17 x 17 x 768, 8 x 8 x 2048: the table of the 2015 paper."""
    seen = {}
    with torch.device("meta"):
        net = Inception().eval()
        for name in ("Mixed_5d", "Mixed_6e", "Mixed_7c"):
            getattr(net, name).register_forward_hook(lambda m, i, o, n=name: seen.update({n: tuple(o.shape)}))
        net.maps(torch.empty(1, 3, 299, 299))
    assert seen == {"Mixed_5d": (1, 288, 35, 35), "Mixed_6e": (1, 768, 17, 17), "Mixed_7c": (1, 2048, 8, 8)}


def test_mean_pool_leaves_the_padding_out():
    """A constant stays constant up to the edge; with the padding counted a corner would be 4/9."""
    ones = torch.ones(1, 1, 5, 5)
    assert torch.equal(mean_pool(ones), ones)
    assert F.avg_pool2d(ones, 3, 1, 1)[0, 0, 0, 0] == pytest.approx(4 / 9)


@pytest.mark.parametrize(
    ("block", "pooled", "pool"),
    [
        (lambda: BlockA(192, 32), 32, mean_pool),
        (lambda: BlockC(768, 128), 192, mean_pool),
        (lambda: BlockE(1280, "mean"), 192, mean_pool),
        (lambda: BlockE(2048, "max"), 192, lambda x: F.max_pool2d(x, 3, 1, 1)),
    ],
)
def test_each_block_pools_as_it_must(block, pooled, pool):
    """With an identity behind it, the pool branch shows its pooling: mean everywhere, maximum in the last block."""
    net = block().eval()
    x = torch.randn(1, net.branch_pool.conv.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.branch_pool.conv.weight.zero_()
        net.branch_pool.conv.weight[:, :pooled, 0, 0] = torch.eye(pooled)
        out = net(x)[:, -pooled:]
    torch.testing.assert_close(out, (pool(x)[:, :pooled] / 1.001**0.5).relu())


@pytest.mark.parametrize("size", [16, 64, 299, 512])
def test_resize_is_tensorflows(size):
    """Of a ramp, output i is i * size / 299, held at the last pixel; today's half-pixel rule gives another."""
    ramp = torch.arange(size, dtype=torch.float64).expand(1, 1, 3, size)
    want = (torch.arange(299, dtype=torch.float64) * size / 299).clamp(max=size - 1)
    torch.testing.assert_close(tensorflow_resize(ramp, 299)[0, 0, 0], want)
    torch.testing.assert_close(tensorflow_resize(ramp.mT, 299)[0, 0, :, 0], want)
    if size == 299:
        assert torch.equal(tensorflow_resize(ramp, 299)[0, 0, :3], ramp[0, 0].expand(3, -1))
    else:
        other = F.interpolate(ramp, (299, 299), mode="bilinear", align_corners=False)[0, 0, 0]
        assert (other - want).abs().max() > 0.2


def test_input_scale():
    """-1 (black, 0) becomes -1; 1 (white, 255) becomes 127/128; grey is repeated."""
    net = empty_inception()
    out = net.prepare(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    assert out.shape == (2, 3, 299, 299)
    assert torch.equal(out[0], torch.full_like(out[0], -1)) and torch.equal(
        out[1], torch.full_like(out[1], 127 / 128)
    )


def test_features_are_the_files(weights):
    """Grey equals its repetition in colour; printed as FID; the hash and the file's hash are in the report."""
    grey, colour = images(), images()
    colour = Images(colour.pixels.expand(-1, 3, -1, -1), ImageSpec((16, 16), 3))
    a, b = build(f"inception={weights}", grey), build(f"inception={weights}", colour)
    fa = a.embed(grey)
    assert fa.shape == (3, 2048) and torch.isfinite(fa).all() and fa.std() > 0
    torch.testing.assert_close(fa, b.embed(colour))
    import hashlib

    told = a.describe()
    assert told["label"] == "FID" and len(told["sha256"]) == 64
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in told["preprocessing"]
    assert measures({"networks": [told]})["fd/inception"].title == "FID"


def test_names_of_ports_are_accepted(weights, tmp_path):
    """A wrapper's prefix, an auxiliary head and missing batch counters do not matter; values are taken exactly."""
    state = {f"module.{k}": v for k, v in load_file(str(weights)).items() if "num_batches" not in k}
    state["module.AuxLogits.conv0.conv.weight"] = torch.zeros(1)
    save_file(state, str(tmp_path / "p.safetensors"))
    a, b = read_inception(weights).state_dict(), read_inception(tmp_path / "p.safetensors").state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(a["Mixed_7c.branch_pool.bn.bias"], state["module.Mixed_7c.branch_pool.bn.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("Mixed_6c.branch7x7_2.conv.weight"), "1 tensors missing.*'Mixed_6c.branch7x7_2.conv.weight' is"),
        (lambda s: s.update({"fc.weight": torch.zeros(1000, 2048)}), "is no FID. Use the port of 2015-12-05"),
        (lambda s: s.update({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 1, 3, 3)}), "of another shape"),
        (lambda s: s.pop("fc.bias"), "'fc.bias' is missing"),
    ],
)  # fmt: skip
def test_wrong_files(weights, tmp_path, change, message):
    """Missing tensors, other shapes, torchvision's own 1000 classes: one sentence that names the first."""
    state = load_file(str(weights))
    change(state)
    save_file(state, str(tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match=message):
        read_inception(tmp_path / "x.safetensors")


def test_pickles_are_refused_with_the_remedy(tmp_path, capsys):
    """A .pth is never opened; the sentence says how to convert it. The command line stops before drawing images."""
    path = tmp_path / "inception.pth"
    torch.save({"fc.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"can run code.*torch.load\(FILE, weights_only=True\)"):
        read_inception(path)
    argv = ["compare", "/nowhere", "--data.count=60", "--data.size=16", "--features", f"inception={path}"]
    assert main(argv) == 2 and "no readable safetensors" in capsys.readouterr().err


def test_volumes_and_names_without_file(weights):
    """Volumes have no FID; 'inception' without a file says what it needs; unknown names suggest."""
    with pytest.raises(VerisimError, match="2D images"):
        build(f"inception={weights}", images(size=(8, 8, 8)))
    with pytest.raises(VerisimError, match="inception=FILE"):
        build("inception", images())
    with pytest.raises(VerisimError, match="Did you mean 'inception'"):
        build("incepton=x", images())


def test_stored_networks_join_the_comparison(tmp_path):
    """A stored domain network replaces the one that would be trained; a wrong file is never left out silently."""
    real = images(40, seed=1)
    net = domain_features(real, steps=2)
    save_features(net, tmp_path / "d.safetensors")
    names = with_stored(("random", "domain", "pixels"), [f"domain={tmp_path / 'd.safetensors'}"])
    assert [n.partition("=")[0] for n in names] == ["random", "pixels", "domain"]
    found = _networks(images(40, seed=2), FairSettings(networks=names), [])
    assert [n.name for n in found] == ["random", "pixels", "domain"] and found[2].sha256 == net.sha256
    with pytest.raises(CheckpointError):
        _networks(real, FairSettings(networks=("domain=/nowhere",)), [])
    with pytest.raises(VerisimError, match="made for 1 channel"):
        _networks(images(40, 3), FairSettings(networks=names), [])
    with pytest.raises(VerisimError, match="given twice"):
        with_stored((), ["domain=a", "domain=b"])
