"""The parts: normalisation, doubling, attention, embedding against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from verisim.nets.blocks import NoiseEmbedding, SelfAttention, doubled, resampled
from verisim.nets.norm import group_count, modulated_norm

LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


def by_definition(x, s, t, groups):
    """The formula of verisim.nets.norm, in float64."""
    v = x.double().reshape(len(x), groups, -1)
    v = (v - v.mean(2, keepdim=True)) / (v.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    shape = (*x.shape[:2], *[1] * (x.ndim - 2))
    return v.reshape(x.shape) * s.double().view(shape) + t.double().view(shape)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("layout", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("side", [4, 34])
def test_modulated_norm_is_its_definition(dims, layout, grad, side):
    """Each of the fast paths (order, gradient, size) computes the textbook formula."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *[side] * (dims - 1), 4, generator=g) * 3 + 5
    s, t = torch.randn(2, 2, 8, generator=g)
    x = x.to(memory_format=LAYOUT[dims]) if layout else x
    with torch.set_grad_enabled(grad):
        y = modulated_norm(x, s, t, 2)
        half = modulated_norm(x.bfloat16(), s, t, 2)
    exact = by_definition(x, s, t, 2)
    torch.testing.assert_close(y.double(), exact, atol=1e-4, rtol=1e-4)
    assert half.dtype == torch.bfloat16 and y.stride() == x.stride()
    torch.testing.assert_close(half.double(), by_definition(x.bfloat16(), s, t, 2), atol=0.03, rtol=0.02)


@pytest.mark.parametrize("layout", [False, True])
def test_modulated_norm_gradients(layout):
    """Analytic gradients for image, scale and shift agree with those of the definition."""
    g = torch.Generator().manual_seed(0)
    x, s, t = torch.randn(2, 8, 4, 4, generator=g), *torch.randn(2, 2, 8, generator=g)
    x = (x.to(memory_format=torch.channels_last) if layout else x).requires_grad_()
    s, t = s.requires_grad_(), t.requires_grad_()
    w = torch.randn(2, 8, 4, 4, generator=g)
    ours = torch.autograd.grad((modulated_norm(x, s, t, 2) * w).sum(), (x, s, t))
    true = torch.autograd.grad((by_definition(x, s, t, 2) * w).sum(), (x, s, t))
    for a, b in zip(ours, true):
        torch.testing.assert_close(a, b.float(), atol=1e-5, rtol=1e-4)


def test_norm_statistics_are_not_bf16():
    """Statistics of 4096 bfloat16 values are exact to float32, where a bfloat16 sum would stall."""
    x = (torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)) + 20).bfloat16()
    one, zero = torch.ones(1, 4), torch.zeros(1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = modulated_norm(x, one, zero, 1).float()
    assert y.mean().abs() < 2e-3 and (y.std() - 1).abs() < 2e-3


@pytest.mark.parametrize(
    "channels, groups", [(1, 1), (6, 1), (7, 1), (8, 2), (32, 8), (48, 12), (128, 32), (512, 32)]
)
def test_group_count(channels, groups):
    """Any width gets equal groups, of four channels or more where it can."""
    assert group_count(channels) == groups and channels % groups == 0


@pytest.mark.parametrize("size", [(3, 5), (4, 1), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_doubling_is_nearest_neighbour(size, dtype):
    """The matrix form equals torch's interpolation bit for bit, and so does its gradient."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=g).to(dtype).requires_grad_()
    ours, true = doubled(x), F.interpolate(x, scale_factor=2.0, mode="nearest")
    assert torch.equal(ours, true)
    w = torch.randint(-4, 5, true.shape, generator=g).to(dtype)  # small integers: sums are exact
    a, b = (torch.autograd.grad((y * w).sum(), x)[0] for y in (ours, true))
    assert torch.equal(a, b)


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
def test_halving_undoes_doubling(size):
    """The mean over 2x blocks of a doubled image is the image."""
    x = torch.randn(1, 2, *size)
    torch.testing.assert_close(resampled(doubled(x), "down"), x)


def test_attention_ignores_the_order_of_positions():
    """Self-attention without positions commutes with any permutation of the pixels."""
    torch.manual_seed(0)
    net = SelfAttention(8, 4)
    torch.nn.init.normal_(net.out.weight)
    x, order = torch.randn(2, 8, 3, 4), torch.randperm(12)
    shuffled = x.flatten(2)[..., order].view(x.shape)
    y = net(x).flatten(2)[..., order].view(x.shape)
    torch.testing.assert_close(net(shuffled), y)


def test_attention_starts_as_the_identity():
    """The projection back is zero at the start."""
    x = torch.randn(2, 8, 3, 4)
    assert torch.equal(SelfAttention(8, 4)(x), x)


def test_embedding_separates_noise_levels():
    """Fourier features tell ln(sigma)/4 apart over the whole range; step numbers need the sinusoids."""
    fourier, steps = (NoiseEmbedding(16, k, 32, 0) for k in ("fourier", "sinusoidal"))

    def features(net, c):
        angle = c[:, None] * net.frequencies
        return torch.cat([angle.cos(), angle.sin()], 1)

    for net, c in ((fourier, torch.linspace(-1.6, 1.1, 200)), (steps, torch.arange(1000.0))):
        gap = torch.cdist(features(net, c), features(net, c)) + 9 * torch.eye(len(c))
        assert gap.min() > 0.02
