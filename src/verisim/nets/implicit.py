"""Coordinate networks: a point (and what it is conditioned on) -> the value there.

Spec 002, sections 1.4 and K.3. Four non-linearities with what belongs to each: its linear map(s) and their
initialisation. A network is `layers` such layers; all but the first and the last average their output with their
input, (y + x) / 2.

`real_gabor` closes with a Gabor layer too, as the source's network does (its parameter counts 232,450 in 3D and
232,194 in 2D follow from that); the others close with a linear map. Those counts are of real numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from verisim.errors import VerisimError, pick


class RealGabor(nn.Module):
    """y = cos(w0 (W1 x + b1)) exp(-(s0 (W2 x + b2))^2), real WIRE; (..., n) -> (..., m), |y| <= 1."""

    def __init__(
        self,
        inputs: int,  # n
        outputs: int,  # m
        omega: float,  # w0, frequency
        scale: float,  # s0, inverse width of the window
    ) -> None:
        super().__init__()
        self.frequency = nn.Linear(inputs, outputs)  # torch's own initialisation, as in the source
        self.window = nn.Linear(inputs, outputs)
        self.omega, self.scale = omega, scale

    def forward(self, x: Tensor) -> Tensor:
        wave = (self.omega * self.frequency(x)).cos()
        return wave * (-(self.scale * self.window(x)).square()).exp()


class ComplexLinear(nn.Module):
    """x W^T + b with complex W and b, stored as real and imaginary parts; (..., n) -> (..., m) complex64."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(2, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(2, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.complex(*self.weight).T + torch.complex(*self.bias)


class ComplexGabor(nn.Module):
    """y = exp(i w0 z) exp(-|s0 z|^2) with z = W x + b, WIRE; (..., n) -> (..., m) complex64.

    The layer that takes real points has real weights, all others complex ones.
    """

    def __init__(self, inputs: int, outputs: int, omega: float, scale: float, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs) if first else ComplexLinear(inputs, outputs)
        self.omega, self.scale = omega, scale

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        z = torch.complex(z, torch.zeros_like(z)) if not z.is_complex() else z
        square = z.real.square() + z.imag.square()
        # one exponent: its real part is at most (w0 / 2 s0)^2, so that nothing overflows
        return torch.exp(1j * self.omega * z - self.scale**2 * square)


class Sine(nn.Module):
    """y = sin(w0 (W x + b)), SIREN; W ~ U(-a, a) with a = sqrt(6 / n) / w0, which keeps the variance.

    With sines of variance v coming in, w0 W x has variance 2 v and looks normal, so v -> (1 - exp(-4 v)) / 2,
    which settles at 0.398 (biases of 0). The original paper has a = 1 / n in the first layer, for points that
    fill [-1, 1]; the spec's network does not.
    """

    def __init__(self, inputs: int, outputs: int, omega: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = math.sqrt(6 / inputs) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return (self.omega * self.linear(x)).sin()


class Rectified(nn.Module):
    """y = max(0, W x + b); smooth and slow to learn detail unless the points come as Fourier features."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


LAYERS = {  # name -> layer of (n, m, w0, s0, whether it is the first)
    "real_gabor": lambda n, m, omega, scale, first: RealGabor(n, m, omega, scale),
    "complex_gabor": lambda n, m, omega, scale, first: ComplexGabor(n, m, omega, scale, first),
    "sine": lambda n, m, omega, scale, first: Sine(n, m, omega),
    "relu": lambda n, m, omega, scale, first: Rectified(n, m),
}
LAST = {  # name -> what closes the network
    "real_gabor": RealGabor,
    "complex_gabor": lambda n, m, omega, scale: ComplexLinear(n, m),
    "sine": lambda n, m, omega, scale: nn.Linear(n, m),
    "relu": lambda n, m, omega, scale: nn.Linear(n, m),
}
OMEGA = {"real_gabor": 10.0, "complex_gabor": 10.0, "sine": 30.0, "relu": 1.0}  # w0 unless it is given
SCALE = 10.0  # s0


class CoordinateNet(nn.Module):
    """Points (..., n) float32 -> values (..., m) float32. Raises VerisimError for settings that give no network."""

    def __init__(
        self,
        inputs: int,  # n: coordinates, age, latent ... of a point
        outputs: int = 1,  # m
        hidden: int = 128,  # width
        layers: int = 8,  # all of them, first and last included
        activation: str = "real_gabor",  # see LAYERS
        omega: float = 0.0,  # w0; 0 = the activation's own (OMEGA)
        scale: float = SCALE,  # s0, for the Gabor kinds
        residual: bool = True,  # hidden layers give (y + x) / 2 instead of y
    ) -> None:
        super().__init__()
        make = pick(LAYERS, activation, "activation")
        if min(inputs, outputs, hidden) < 1 or layers < 2:
            raise VerisimError(
                f"Coordinate network: inputs={inputs}, outputs={outputs}, hidden={hidden}, layers={layers}; the "
                f"first three must be 1 or more and layers 2 or more (first and last)."
            )
        omega = omega or OMEGA[activation]
        widths = [inputs] + [hidden] * (layers - 1)
        body = [make(a, hidden, omega, scale, k == 0) for k, a in enumerate(widths[:-1])]
        self.body = nn.ModuleList(body)
        self.last = LAST[activation](hidden, outputs, omega, scale)
        self.inputs, self.residual = inputs, residual

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.inputs:
            raise VerisimError(
                f"Coordinate network: points of {x.shape[-1]} numbers; it was built for {self.inputs}. "
                f"Give coordinates, age and latent in the order it was trained with."
            )
        for k, layer in enumerate(self.body):
            y = layer(x)
            x = (y + x) / 2 if k and self.residual else y
        y = self.last(x)
        return y.real if y.is_complex() else y


def fourier_features(x: Tensor, bands: int) -> Tensor:
    """cos and sin of 2^k pi x for k = 0...bands - 1 and every coordinate: (..., d) -> (..., 2 d bands).

    bands = 0 gives x back. Points within [-1, 1] keep different features.
    """
    if bands == 0:
        return x
    angle = x[..., None] * (math.pi * 2.0 ** torch.arange(bands, device=x.device))  # (..., d, L)
    return torch.stack([angle.cos(), angle.sin()], -1).flatten(-3)
