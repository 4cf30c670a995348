"""The distribution of noise levels in training, and what does not go with it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from verisim.diffusion.parametrisation import STEP_NUMBERED
from verisim.diffusion.schedules import TABLES
from verisim.errors import VerisimError

Noise = Literal[
    "auto", "lognormal", "logit_normal", "vp_linear", "vp_cosine", "vp_scaled_linear", "vp_sigmoid"
]


def distribution(noise: str, parametrisation: str) -> str:
    """The training noise distribution; VerisimError where the network could not be told of it."""
    numbered = parametrisation in STEP_NUMBERED
    if noise == "auto":
        return {"edm": "lognormal", "flow": "logit_normal"}.get(parametrisation, "vp_linear")
    if numbered and noise not in TABLES:
        raise VerisimError(
            f"parametrisation '{parametrisation}' counts training steps, so its noise must be one of "
            f"{', '.join(TABLES)}, not '{noise}'. For '{noise}' use parametrisation edm or flow."
        )
    return noise


def draw_levels(n: int, noise: str, table: Tensor, p_mean: float = -1.2, p_std: float = 1.2) -> Tensor:
    """n noise levels (n,) float64 of a training distribution, stratified over the batch; table (T,) of vp_ grids."""
    u = ((torch.arange(n) + torch.rand(n, dtype=torch.float64)) / n).clamp(1e-9, 1 - 1e-9)
    if noise == "lognormal":  # Karras 2022, table 1
        return torch.exp(p_mean + p_std * torch.special.ndtri(u))
    if noise == "logit_normal":  # Esser 2024, eq. 19: t = sigmoid(z), sigma = t / (1 - t)
        return torch.exp(torch.special.ndtri(u))
    return table[(u * len(table)).long()]  # a training step, uniform


def check_learned_variance(learned: bool, noise: str, mask_share: float) -> None:
    """Raise VerisimError where there is no chain to learn the variance of."""
    if learned and noise not in TABLES:
        raise VerisimError(
            f"learned_variance needs a chain of training steps; noise '{noise}' has none. Set noise to one of "
            f"{', '.join(TABLES)}."
        )
    if learned and mask_share:
        raise VerisimError(
            "learned_variance and mask_share cannot be combined; set one of them to its off value."
        )
