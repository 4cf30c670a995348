"""Learned reverse variance and its hybrid loss. Nichol 2021, section 3.1; spec 003, section 2.2.

The network answers with twice the channels: the usual target and a number in [-1, 1] per value, from
which v = (1 + number) / 2 picks the log variance between beta-tilde (0) and beta (1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verisim.diffusion.chain import step_nats
from verisim.diffusion.parametrisation import Network, Parametrisation, step_number, wide


def denoise_with_variance(
    p: Parametrisation,
    network: Network,  # answers (B, 2C, *S)
    x: Tensor,  # (B, C, *S)
    sigma: Tensor,  # (B,)
    label: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x0 and v, (B, C, *S) each, in the dtype of x."""
    f, number = p.answer(network, x, sigma, label).to(x.dtype).chunk(2, dim=1)
    return p.assemble(f, x, sigma), (1 + number) / 2


def hybrid_loss(
    p: Parametrisation,
    network: Network,  # answers (B, 2C, *S)
    x0: Tensor,  # clean images (B, C, *S) in [-1, 1]
    eps: Tensor,  # standard normal noise, same shape
    sigma: Tensor,  # (B,) levels of p.table
    label: Tensor | None = None,
    *,
    min_snr_gamma: float = 0.0,
    vlb_weight: float = 1e-3,  # lambda of L_simple + lambda L_vlb
) -> tuple[Tensor, Tensor]:
    """L_simple + lambda T L_{t-1} and L_{t-1} alone, (B,) each; the latter in bits per dimension.

    T L_{t-1} at a random t estimates the sum over the chain. Its gradient reaches v alone: the mean
    inside of it is held (eq. 16), so that the noisy bound cannot spoil the denoiser.
    """
    x = x0 + wide(sigma, x0) * eps
    f, number = p.answer(network, x, sigma, label).to(x.dtype).chunk(2, dim=1)
    simple = p.error(f, x0, eps, sigma, min_snr_gamma)
    steps = len(p.table)
    i = steps - 1 - step_number(sigma.double().cpu(), p.table.cpu()).round().long()  # (B,)
    sigmas = torch.cat([p.table.cpu().flip(0), torch.zeros(1, dtype=torch.float64)])
    mean = p.assemble(f, x, sigma).detach()
    bits = step_nats(x0, mean, (1 + number) / 2, sigmas, i) / (x0[0].numel() * math.log(2))
    return simple + (vlb_weight * steps * bits).to(simple.dtype), bits.to(simple.dtype)
