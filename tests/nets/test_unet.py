"""The U-Net: shapes, exact identities, precision, and errors that name the way out."""

import pytest
import torch

from verisim.errors import VerisimError
from verisim.nets import UNet
from verisim.nets.unet import fold, unfold

SIZES = {2: (16, 24), 3: (8, 8, 16)}
LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


def make(dims=2, awake=True, **settings):
    """A small U-Net; awake = the zero-initialised layers are given random weights."""
    torch.manual_seed(0)
    settings = {"channels": (8, 16, 16), "blocks": 1, "head_channels": 8, **settings}
    net = UNet(dims, 2, 3, **settings)
    if awake:
        for p in net.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)
    return net


def inputs(dims=2, n=2):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, *SIZES[dims], generator=g), torch.linspace(-1, 1, n)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skip": "average"},
        {"patch": 2},
        {"padding": "circular"},
        {"attention": (True, False, False), "blocks": 2, "dropout": 0.1},
        {"channels": (8,)},
        {"channels": (6, 10), "head_channels": 5, "embedding": "sinusoidal"},
    ],
    ids=str,
)
def test_output_has_the_size_of_the_input(dims, settings):
    """Every setting gives (B, out, *S) in 2D and 3D, from widths that no group count divides too."""
    x, c = inputs(dims)
    y = make(dims, **settings)(x, c)
    assert y.shape == (2, 3, *SIZES[dims]) and y.dtype == torch.float32 and torch.isfinite(y).all()


def test_starts_at_zero():
    """The last convolution starts at zero: a fresh network predicts exactly 0."""
    x, c = inputs()
    assert not make(awake=False)(x, c).any()


def test_every_block_starts_as_its_shortcut():
    """Residual branches start at zero, so noise cannot yet change the features."""
    net = make(awake=False)
    x, _ = inputs()
    torch.nn.init.normal_(net.conv_out.weight)
    assert torch.equal(net(x, torch.zeros(2)), net(x, torch.ones(2)))


@pytest.mark.parametrize("kind, a, b", [("fourier", -1.5, -1.45), ("sinusoidal", 998, 999)])
def test_noise_level_matters(kind, a, b):
    """Neighbouring noise levels give different outputs, at the ends of the range as well."""
    net, (x, _) = make(embedding=kind), inputs()
    ya, yb = net(x, torch.full((2,), float(a))), net(x, torch.full((2,), float(b)))
    assert (ya - yb).abs().max() > 1e-4


def test_label_matters_and_none_is_the_null_class():
    """Classes change the output; None is the class after the last, which is no real class."""
    net = make(num_classes=3)
    x, c = inputs()
    y = [net(x, c, torch.full((2,), k)) for k in range(4)]
    assert torch.equal(net(x, c), y[3])
    assert all((y[a] - y[b]).abs().max() > 1e-4 for a in range(4) for b in range(a))


def test_label_without_classes_is_an_error():
    """A condition that would be ignored is refused."""
    x, c = inputs()
    with pytest.raises(VerisimError, match="built without classes"):
        make()(x, c, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("settings", [{}, {"skip": "average", "num_classes": 2}, {"patch": 2}], ids=str)
def test_gradient_reaches_every_parameter(settings):
    """No layer is left out of the graph."""
    net, (x, c) = make(**settings), inputs()
    label = torch.tensor([0, 1]) if "num_classes" in settings else None
    net(x, c, label).square().sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_checkpointing_changes_no_gradient():
    """Recomputing the blocks gives bit-identical gradients, dropout included."""
    grads = []
    for on in (False, True):
        net, (x, c) = make(checkpointing=on, dropout=0.2), inputs()
        torch.manual_seed(7)
        net(x, c).square().mean().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("layout", [False, True])
def test_samples_do_not_see_each_other(dims, layout):
    """Sample 0 comes out bit-identical whatever sample 1 is: no statistics over the batch."""
    net, (x, c) = make(dims), inputs(dims)
    other = torch.stack([x[0], 5 * x[1] + 3])
    if layout:
        net, x, other = (v.to(memory_format=LAYOUT[dims]) for v in (net, x, other))
    with torch.no_grad():
        a, b = net(x, c), net(other, torch.stack([c[0], c[1] + 1]))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_gives_the_same(dims):
    """Memory order is no mathematics: outputs and gradients agree with contiguous ones."""
    x, c = inputs(dims)
    plain, last = make(dims), make(dims).to(memory_format=LAYOUT[dims])
    for a, b in zip(plain.parameters(), last.parameters()):
        assert torch.equal(a, b)
    ya, yb = plain(x, c), last(x.to(memory_format=LAYOUT[dims]), c)
    torch.testing.assert_close(ya, yb, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ya, last(x, c), atol=1e-4, rtol=1e-4)
    ya.square().mean().backward()
    yb.square().mean().backward()
    for a, b in zip(plain.parameters(), last.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("layout", [False, True])
def test_bf16_stays_close(dims, layout):
    """Autocast to bfloat16 (and a network cast to it) stays within its rounding of the fp32 output."""
    net, (x, c) = make(dims), inputs(dims)
    with torch.no_grad():
        exact = net(x, c)
        if layout:
            net, x = net.to(memory_format=LAYOUT[dims]), x.to(memory_format=LAYOUT[dims])
        with torch.autocast("cpu", torch.bfloat16):
            cast = net(x, c)
        whole = net.to(torch.bfloat16)(x, c)
    assert cast.dtype == whole.dtype == torch.float32
    for y in (cast, whole):
        assert (y - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(
    "dims, size, nearest",
    [(2, (30, 30), "28x28 or 32x32"), (2, (33, 17), "32x16 or 36x20"), (3, (8, 8, 2), "8x8x4")],
)
def test_odd_sizes_name_the_nearest_legal_ones(dims, size, nearest):
    """An image that cannot be halved evenly is refused with the sizes that can."""
    net = make(dims)
    assert net.stride == 4
    with pytest.raises(VerisimError, match=f"{'x'.join(map(str, size))}.*multiple of 4.*legal: {nearest}"):
        net(torch.zeros(1, 2, *size), torch.zeros(1))


def test_min_feature_size():
    """The coarsest map is the image over the stride, the patch included."""
    assert make(patch=2).min_feature_size((32, 64)) == (4, 8)
    with pytest.raises(VerisimError, match="multiple of 8"):
        make(patch=2).min_feature_size((36, 64))


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"channels": ()}, "one positive width per level"),
        ({"blocks": 0}, "must be 1 or more"),
        ({"attention": (True,)}, "1 flags for 3 levels"),
        ({"head_channels": 7}, "heads of 7.*divisor of 16"),
        ({"skip": "sum"}, "unknown skip 'sum'"),
        ({"embedding": "learned"}, "Unknown noise embedding 'learned'"),
        ({"dims": 4}, "must be 2 or 3"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, text):
    """Settings that describe no network say what is allowed."""
    with pytest.raises(VerisimError, match=text):
        make(**settings)


@pytest.mark.parametrize("dims", [2, 3])
def test_folding_patches_is_invertible(dims):
    """Space to depth and back is the identity, and one patch becomes one position."""
    x = torch.arange(2 * 3 * 8**dims).float().view(2, 3, *[8] * dims)
    assert torch.equal(unfold(fold(x, 4), 4), x)
    first = fold(x, 4)[(0, slice(0, 4**dims), *[0] * dims)]
    assert torch.equal(first, x[(0, 0, *[slice(0, 4)] * dims)].flatten())


def test_average_skips_and_patches_are_cheaper():
    """The two economy settings cost fewer operations than the default."""
    from torch.utils.flop_counter import FlopCounterMode

    def cost(**settings):
        x, c = inputs()
        with FlopCounterMode(display=False) as count, torch.no_grad():
            make(**settings)(x, c)
        return count.get_total_flops()

    assert cost(skip="average") < cost() and cost(patch=2) < 0.4 * cost()


def test_compiles_as_one_graph():
    """torch.compile captures the network without a break and computes the same."""
    net, (x, c) = make(num_classes=2, channels=(8, 8)), inputs()
    whole = torch.compile(net, backend="aot_eager", fullgraph=True)
    label = torch.tensor([0, 1])
    torch.testing.assert_close(whole(x, c, label), net(x, c, label))
