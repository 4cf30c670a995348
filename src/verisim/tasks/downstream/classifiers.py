"""Classifiers of the label: the small judge, and CheXNet's 121-layer DenseNet.

CheXNet (spec 004, section 1): DenseNet-121, Adam, batches of 16, learning rate 1e-3. Ours: random weights (the
source's come from ImageNet), a bounded number of steps with the learning rate in one cycle up to 1e-3, classes in
equal shares, shifts and no flips; the weights with the lowest loss on an inner validation set are kept.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.judges import Judge, train
from verisim.metrics.utility import check_labels, fit_present
from verisim.tasks.downstream.base import DownstreamSettings, built

LEAST_SIDE = 29  # pixels: 29 -> 15 -> 8 -> 4 -> 2 -> 1


def fit_classifier(images: Images, normal: int | None, settings: DownstreamSettings, seed: int) -> nn.Module:
    """The small convolutional network that `verisim utility` uses by default; logits (B, K)."""
    labels = check_labels(images, "training set")
    return fit_present(images, labels, int(labels.max()) + 1, settings.judge, seed)


def fit_densenet(images: Images, normal: int | None, settings: DownstreamSettings, seed: int) -> nn.Module:
    """DenseNet-121; logits (B, K). Images need LEAST_SIDE pixels per side."""
    labels = check_labels(images, "training set")
    k = int(labels.max()) + 1
    spec = images.spec
    net = built(lambda: CheXNet(spec.spatial_dims, spec.channels, k, settings.growth), seed)
    return train(net, images.pixels.float(), labels, k, settings.densenet, seed, images.patients)


class CheXNet(Judge):
    """DenseNet-121: blocks of 6, 12, 24 and 16 layers; with growth 32 CheXNet's own size (7 million weights)."""

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        in_channels: int,  # C
        num_outputs: int,  # K
        growth: int = 32,  # channels added by each layer
    ) -> None:
        from monai.networks.nets import DenseNet121

        super().__init__()
        if growth < 1:
            raise VerisimError(f"growth is {growth}: channels that each DenseNet layer adds, 1 or more.")
        net = DenseNet121(spatial_dims, in_channels, num_outputs, 2 * growth, growth)
        self.trunk, self.head = net.features, net.class_layers[-1]

    def features(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, 32 growth): mean over space."""
        return F.relu(self.trunk(x)).flatten(2).mean(2)
