"""What models share that learn from normal images and give anomaly maps: grey values, foreground, no sampling."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from verisim.data.equalise import equalisation_table, equalise, identity_table
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.anomaly.patches import foreground
from verisim.models.base import GenerativeModel

REFERENCE_SCANS = 16  # training images whose grey values are the reference of the equalisation
Equalise = Literal["none", "reference", "scan"]


class AnomalyModel(GenerativeModel):
    """Base of detectors; a subclass writes `training_loss` and `anomaly_map` (verisim.roles.AnomalyDetector). Classes are not used: train on images of the normal class alone.

    Stored with the weights: the network's buffer `table`, the reference of the histogram equalisation, and
    `reference`, the first training image in 256 grey values, to which new scans can be registered.
    """

    reference: Tensor

    family = "anomaly detection"
    can_sample: ClassVar[bool] = False

    def __init__(
        self,
        spec: ImageSpec,
        net: nn.Module,
        lr: float,  # Adam learning rate
        equalise: Equalise,  # see grey()
        background: float,  # grey value in [-1, 1] up to which a pixel is background
    ) -> None:
        super().__init__(spec, 0)
        if not -1 <= background < 1:
            raise VerisimError(
                f"background={background:g}: it is a grey value from -1 (black) to below 1 (white); -0.95 is usual."
            )
        net.register_buffer("table", identity_table(spec.channels))
        self.net = net
        self.register_buffer("reference", torch.zeros(spec.shape, dtype=torch.uint8))
        self.lr, self.equalise, self.background = lr, equalise, background

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), self.lr)

    def prepare(self, x: Tensor) -> None:
        """Take the references of equalisation and registration from the first training images (N, C, *S)."""
        self.reference.copy_(((x[0] + 1) * 127.5).round())
        if self.equalise == "reference":
            some = x[:REFERENCE_SCANS]
            self.net.table.copy_(equalisation_table(some, foreground(some, self.background)))  # type: ignore[operator]

    def extra_state(self) -> dict[str, Tensor]:
        """The reference scan."""
        return {"reference": self.reference}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what extra_state() gave."""
        self.reference.copy_(state["reference"])

    def reference_scan(self) -> Tensor:
        """(C, *S) float32 in [-1, 1]: how scans should lie. VerisimError for a model that was never trained."""
        if not self.reference.any():
            raise VerisimError("This model holds no reference scan to register to: it was never trained.")
        return self.reference.float() / 127.5 - 1

    def grey(self, x: Tensor, net: nn.Module) -> Tensor:
        """x (B, C, *S) in [-1, 1] as the network sees it, in [-1, 1].

        equalise "none": as it is; "reference": by the stored table; "scan": every image by its own histogram.
        """
        if self.equalise == "none":
            return x
        if self.equalise == "reference":
            return equalise(x, net.table)  # type: ignore[arg-type]
        masks = foreground(x, self.background)
        return torch.cat(
            [equalise(i[None], equalisation_table(i[None], m[None]).to(x)) for i, m in zip(x, masks)]
        )
