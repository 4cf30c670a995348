"""Power-function averages of weights, and their mixture into one of any length after training.

Karras 2024 (EDM2), section 3 and appendix C. The average of exponent g at step t weighs the past by

    p(tau) = (g + 1) tau^g / t^(g + 1),   0 < tau <= t                                         (eq. 3)

which never remembers the start, whatever t is. Its standard deviation as a share of t is its length

    length^2 = (g + 1) / ((g + 2)^2 (g + 3)),   0 < length < 0.29                              (eq. 4)

Snapshots of two such averages span a space of profiles; the least-squares weights on them make the average
that one would have tracked with another length.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import nn

from verisim.errors import VerisimError

LENGTHS = (0.05, 0.10)  # the two tracks of EDM2
LONGEST = math.sqrt(1 / 12)  # of a uniform average, exponent 0


class PowerEMA(nn.Module):
    """Averages of a network with power-function profiles, one per length."""

    def __init__(self, net: nn.Module, lengths: tuple[float, ...] = LENGTHS) -> None:
        super().__init__()
        self.lengths = tuple(lengths)
        self.exponents = [exponent(length) for length in lengths]
        self.tracks = nn.ModuleList(copy.deepcopy(net) for _ in lengths)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def update(self, net: nn.Module, t: int) -> None:
        """Take in the weights after step t = 1, 2, ...; the first update copies them."""
        current = net.state_dict()
        for g, track in zip(self.exponents, self.tracks):
            keep = decay(t, g)
            for name, a in track.state_dict().items():
                if a.is_floating_point():
                    a.lerp_(current[name].to(a.dtype), 1 - keep)
                else:
                    a.copy_(current[name])


def exponent(length: float) -> float:
    """g of a relative length: the positive root of (g + 1) = length^2 (g + 2)^2 (g + 3)."""
    if not 0 < length < LONGEST:
        raise VerisimError(
            f"An average of relative length {length:g} does not exist; 0 < length < {LONGEST:.4f}, e.g. 0.1."
        )
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(max(roots.real[np.abs(roots.imag) < 1e-9]))


def relative_length(g: float) -> float:
    """The inverse of exponent()."""
    return math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3)))


def decay(t: int, g: float) -> float:
    """Weight of the average so far at step t = 1, 2, ...: (1 - 1/t)^(g + 1). Karras 2024, eq. 127."""
    return (1 - 1 / t) ** (g + 1)


def overlap(t_a: np.ndarray, g_a: np.ndarray, t_b: np.ndarray, g_b: np.ndarray) -> np.ndarray:
    """int p_a p_b dtau of two profiles, elementwise. Karras 2024, algorithm 3 in closed form.

    (g_a + 1)(g_b + 1) / (g_a + g_b + 1) * min(t)^(g_a + g_b + 1) / (t_a^(g_a + 1) t_b^(g_b + 1))
    """
    least, most = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    later = np.where(t_a < t_b, g_b, g_a)  # exponent of the profile that reaches further
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * (least / most) ** later / most


def mixing_weights(
    times: np.ndarray,  # (K,) steps of the snapshots, > 0
    exponents: np.ndarray,  # (K,) exponents of their averages
    time: float,  # step of the average wanted, at most the last snapshot's
    length: float,  # its relative length
) -> np.ndarray:
    """(K,) weights of the snapshots whose mixed profile is nearest to the wanted one (least squares)."""
    times, exponents = np.asarray(times, np.float64), np.asarray(exponents, np.float64)
    if len(times) == 0 or not 0 < time <= times.max():
        last = f"{times.max():g}" if len(times) else "none"
        raise VerisimError(
            f"An average at step {time:g} needs a snapshot at or after it; the last is {last}."
        )
    g = exponent(length)
    gram = overlap(times[:, None], exponents[:, None], times[None], exponents[None])  # (K, K)
    right = overlap(times, exponents, np.full_like(times, time), np.full_like(times, g))
    return np.linalg.lstsq(gram, right, rcond=1e-14)[0]
