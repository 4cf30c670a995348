"""A model of what a representation makes of images: its statistics, and what of it is stored with the weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from verisim.diffusion.parametrisation import Parametrisation
from verisim.errors import CheckpointError
from verisim.models.base import GenerativeModel
from verisim.models.diffusion.representation import Representation


class RepresentedModel(GenerativeModel):
    """Base of diffusion models. A subclass sets `representation`, `table` and `_parametrisation`."""

    representation: Representation
    table: Tensor  # (T,) float64 sigma of training steps 1...T
    _parametrisation: Parametrisation  # with the sigma_data that the user gave

    @property
    def sigma_data(self) -> float:
        """The standard deviation of what is denoised; of its widest channel where they differ."""
        spread = self.representation.spread
        widest = self._parametrisation.sigma_data if spread is None else spread.max()
        return float(widest)

    @property
    def parametrisation(self) -> Parametrisation:
        """What the network is asked for, with the standard deviation of each channel that is denoised."""
        spread = self.representation.spread
        if spread is None:
            return self._parametrisation
        return Parametrisation(self._parametrisation.name, spread, self.table)

    def prepare(self, x: Tensor) -> None:
        """Measure the statistics of the representation on the training images, unless it has them."""
        self.representation.measure(x)

    def settings_to_rebuild(self) -> dict[str, Any]:
        """The first stage's description in place of its path: the model's own files hold its weights."""
        return self.representation.settings_to_rebuild()

    def extra_state(self) -> dict[str, Tensor]:
        """The representation's weights and statistics; nothing for pixels."""
        return {f"representation.{k}": v for k, v in self.representation.state_dict().items()}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what extra_state() gave; CheckpointError naming what does not fit."""
        given = {k.removeprefix("representation."): v for k, v in state.items()}
        want = self.representation.state_dict()
        odd = sorted(set(given) ^ set(want)) or [k for k in want if given[k].shape != want[k].shape]
        if odd:
            raise CheckpointError(
                f"The weights file does not hold this model's {self.representation.name} representation: "
                f"{len(odd)} tensors differ, first '{odd[0]}'."
            )
        self.representation.load_state_dict(given)
