"""Confidence-aware anomaly detection: one feature extractor, an anomaly head and a confidence head.

    (a, u) = heads(features(x)),   p = sigmoid(a): abnormal,   c = sigmoid(u): confidence

Spec 004, section 1: flag an image if its anomaly score is high OR its confidence is low. With one threshold t for
both, that is to flag it if the larger of the two exceeds t, so the score is

    s(x) = max( (a - m_a) / d_a,  (-u - m_u) / d_u )

with m, d the mean and standard deviation over the normal training images: a normal image is as unlikely to be flagged
for one reason as for the other. That scale is ours, and so is the training, which the source does not describe: known
abnormal images of all classes are one class, and confidence is learned by hints (DeVries and Taylor 2018),

    p' = c p_y + (1 - c),   loss = -log p' - lambda log c

where p_y is the probability of the true answer: the network may ask for the answer at a price. The loss is least at
c = min(1, lambda / ((1 + lambda) (1 - p_y))): certainty, unless the answer is wrong.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.metrics.judges import SmallCNN, logits, train
from verisim.metrics.utility import check_kinds
from verisim.tasks.downstream.base import DownstreamSettings, built, normal_images

PRICE = 0.3  # lambda
SURE = 1e-6  # least probability, so that logarithms stay finite


def hint_loss(outputs: Tensor, abnormal: Tensor) -> Tensor:
    """Mean loss of outputs (B, 2) = (a, u) where abnormal (B,) is 0 or 1."""
    a, u = outputs.unbind(1)
    wrong = torch.sigmoid(torch.where(abnormal == 1, -a, a))  # 1 - p_y
    left = (torch.sigmoid(u) * wrong).clamp(max=1 - SURE)  # 1 - p'
    return (-torch.log1p(-left) - PRICE * F.logsigmoid(u)).mean()


class FlagScore(nn.Module):
    """(B, C, *S) -> s (B,) of a network with outputs (a, u)."""

    sign: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, net: nn.Module, normal: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("sign", torch.tensor([1.0, -1.0]))
        known = logits(net, normal) * self.sign  # (M, 2): a, -u of normal images
        self.register_buffer("centre", known.mean(0))
        self.register_buffer("spread", known.std(0).clamp(min=SURE))

    def forward(self, x: Tensor) -> Tensor:
        both = self.net(x) * self.sign
        return ((both - self.centre) / self.spread).amax(1)


def fit_confidence(images: Images, normal: int | None, settings: DownstreamSettings, seed: int) -> FlagScore:
    """Confidence-aware detector, trained on normal and known abnormal images; scores (B,)."""
    x = normal_images(images, normal)
    assert normal is not None
    abnormal = (check_kinds(images, normal, "training set") != normal).long()
    spec, judge = images.spec, settings.judge
    net = built(lambda: SmallCNN(spec.spatial_dims, spec.channels, 2, judge.width, max(spec.size)), seed)
    train(net, images.pixels.float(), abnormal, 2, judge, seed, images.patients, hint_loss)
    return FlagScore(net, x).eval()
