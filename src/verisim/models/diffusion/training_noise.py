"""The distribution of noise levels in training, and what does not go with it."""

from __future__ import annotations

from typing import Literal

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
