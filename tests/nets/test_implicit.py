"""Coordinate networks: closed forms of one layer, published parameter counts, initialisations."""

import math

import pytest
import torch
from torch import nn

from verisim.errors import VerisimError
from verisim.nets.implicit import (
    LAST,
    LAYERS,
    OMEGA,
    ComplexGabor,
    CoordinateNet,
    RealGabor,
    Sine,
    fourier_features,
)


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("activation", "inputs", "parameters"),
    [
        ("real_gabor", 132, 232_450),  # published, 3D: age, x, y, z and 128 of the latent
        ("real_gabor", 131, 232_194),  # published, 2D
        ("sine", 132, 116_225),  # spec 002, T11: what a SIREN would have
        ("relu", 132, 116_225),
        ("complex_gabor", 132, 132 * 128 + 128 + 2 * 6 * (128**2 + 128) + 2 * 129),  # real numbers
    ],
)
def test_parameter_counts(activation, inputs, parameters):
    """Golden numbers of the spec for 8 layers of 128; the others follow by counting."""
    assert count(CoordinateNet(inputs, activation=activation)) == parameters


def test_registries_agree():
    """Every activation has a layer, a closing layer and a frequency."""
    assert LAYERS.keys() == LAST.keys() == OMEGA.keys()


@pytest.mark.parametrize("activation", sorted(LAYERS))
def test_every_activation_computes(activation):
    """Finite real values of the right shape, gradients everywhere, for leading axes of any number."""
    torch.manual_seed(0)
    net = CoordinateNet(5, 2, hidden=16, layers=4, activation=activation)
    y = net(torch.rand(3, 7, 5) - 0.5)
    assert y.shape == (3, 7, 2) and y.dtype == torch.float32 and torch.isfinite(y).all()
    y.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert torch.allclose(net(torch.ones(5)), net(torch.ones(1, 1, 5))[0, 0], atol=1e-6)


def test_one_real_gabor_layer():
    """cos(10 (2x + 0.1)) exp(-(10 (0.3x - 0.05))^2), by hand."""
    layer = RealGabor(1, 1, 10.0, 10.0)
    with torch.no_grad():
        for linear, w, b in ((layer.frequency, 2.0, 0.1), (layer.window, 0.3, -0.05)):
            linear.weight.fill_(w)
            linear.bias.fill_(b)
    x = torch.linspace(-0.5, 0.5, 11)[:, None]
    hand = torch.cos(10 * (2 * x + 0.1)) * torch.exp(-((10 * (0.3 * x - 0.05)) ** 2))
    y = layer(x).detach()
    assert torch.allclose(y, hand, atol=1e-6) and float(y.abs().max()) <= 1


def test_one_complex_gabor_layer():
    """exp(i w z) exp(-|s z|^2) at z = (0.2 + 0.1i) x + (0.05 - 0.02i); |y| is at most exp((w / 2s)^2)."""
    layer = ComplexGabor(1, 1, 10.0, 10.0, first=False)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([0.2, 0.1]).view(2, 1, 1))
        layer.linear.bias.copy_(torch.tensor([0.05, -0.02]).view(2, 1))
    x = torch.tensor([[0.3 + 0.4j], [-0.7 + 0.2j], [30.0 - 20.0j]])
    z = (0.2 + 0.1j) * x + (0.05 - 0.02j)
    hand = torch.exp(10j * z) * torch.exp(-((10 * z.abs()) ** 2))
    assert torch.allclose(layer(x)[:2], hand[:2], atol=1e-6)
    assert torch.isfinite(torch.view_as_real(layer(x))).all()  # where exp(i w z) alone overflows
    grid = torch.complex(*torch.meshgrid(*[torch.linspace(-3, 3, 201)] * 2, indexing="ij"))
    assert float(layer(grid.reshape(-1, 1)).detach().abs().max()) <= math.exp((10 / 20) ** 2) + 1e-5


@pytest.mark.parametrize("activation", sorted(LAYERS))
def test_hidden_layers_average_their_input(activation):
    """(y + x) / 2 in the middle, nothing around the first and the last layer."""
    torch.manual_seed(1)
    net = CoordinateNet(3, hidden=3, layers=3, activation=activation)  # equal widths throughout
    x = torch.rand(4, 3)
    h = net.body[0](x)
    h = (net.body[1](h) + h) / 2
    y = net.last(h)
    assert torch.equal(net(x), y.real if y.is_complex() else y)
    assert not torch.allclose(CoordinateNet(3, hidden=3, layers=3, residual=False)(x), net(x))


def test_gabor_layers_start_as_torch_does():
    """W and b of both maps ~ U(-1/sqrt(n), 1/sqrt(n))."""
    torch.manual_seed(0)
    layer = RealGabor(256, 256, 10.0, 10.0)
    for linear in (layer.frequency, layer.window):
        for p in (linear.weight, linear.bias):
            assert float(p.detach().abs().max()) <= 1 / 16
        assert float(linear.weight.detach().std()) == pytest.approx(1 / 16 / math.sqrt(3), rel=0.01)


def test_sine_layers_start_with_the_stated_bound():
    """W ~ U(-a, a), a = sqrt(6 / n) / w0: the bound is kept and reached, the deviation is a / sqrt(3)."""
    torch.manual_seed(0)
    w = Sine(256, 256, 30.0).linear.weight.detach()
    a = math.sqrt(6 / 256) / 30
    assert 0.999 * a < float(w.abs().max()) <= a
    assert float(w.std()) == pytest.approx(a / math.sqrt(3), rel=0.01)


def variances(bound, depth=10, n=1024):
    """Variance of the sines after every layer of width n, biases 0, weights U(-bound, bound)."""
    torch.manual_seed(3)
    x = torch.sin(2 * math.pi * torch.rand(256, n))  # variance 1/2
    found = []
    for _ in range(depth):
        layer = Sine(n, n, 30.0)
        nn.init.zeros_(layer.linear.bias)
        if bound is not None:
            nn.init.uniform_(layer.linear.weight, -bound, bound)
        x = layer(x).detach()
        found.append(float(x.var()))
    return found


def test_sine_initialisation_keeps_the_variance():
    """v -> (1 - exp(-4 v)) / 2 from 1/2, which settles at 0.398; another bound does not keep it (control)."""
    expected, v = [], 0.5
    for _ in range(10):
        v = (1 - math.exp(-4 * v)) / 2
        expected.append(v)
    assert variances(None) == pytest.approx(expected, rel=0.03)
    assert expected[-1] == pytest.approx(0.398, abs=2e-3)
    assert variances(0.5 * math.sqrt(6 / 1024) / 30)[-1] < 0.02  # half as wide: it dies out


def test_fourier_features():
    """cos and sin of pi x and 2 pi x for each coordinate; 0 bands leave the points alone."""
    x = torch.tensor([[0.25, -0.5]])
    r = math.sqrt(0.5)
    hand = torch.tensor([[[r, r], [0.0, 1.0]], [[0.0, -1.0], [-1.0, 0.0]]])  # (d, L, cos and sin)
    assert torch.allclose(fourier_features(x, 2), hand.view(1, 8), atol=1e-6)
    assert fourier_features(x, 0) is x


def test_impossible_networks():
    """One sentence with the remedy."""
    with pytest.raises(VerisimError, match=r"Unknown activation 'siren'.*Known: complex_gabor, real_gabor"):
        CoordinateNet(3, activation="siren")
    with pytest.raises(VerisimError, match=r"layers=1; .*2 or more"):
        CoordinateNet(3, layers=1)
    with pytest.raises(VerisimError, match=r"points of 4 numbers; it was built for 3"):
        CoordinateNet(3, hidden=4)(torch.zeros(2, 4))
