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

    The network's buffer `table` is the reference of the histogram equalisation; it is stored with the weights.
    """

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
        self.lr, self.equalise, self.background = lr, equalise, background

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), self.lr)

    def prepare(self, x: Tensor) -> None:
        """Take the reference of the equalisation from the first training images (N, C, *S)."""
        if self.equalise == "reference":
            some = x[:REFERENCE_SCANS]
            self.net.table.copy_(equalisation_table(some, foreground(some, self.background)))  # type: ignore[operator]

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
