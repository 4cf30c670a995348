"""Shared fixtures: a toy model that exercises the training loop, and the folder of real images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from verisim.data.spec import Images, ImageSpec
from verisim.models import MODELS
from verisim.models.base import GenerativeModel

torch.set_num_threads(1)  # the suite runs in parallel processes
if not os.environ.get("VERISIM_TEST_GPU"):  # exact numbers are those of the CPU; test_gpu.py is about GPUs
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class Toy(GenerativeModel):
    """A denoiser with everything that makes resuming hard: dropout, batch norm, noise, an average."""

    family = "toy"

    def __init__(self, spec: ImageSpec, num_classes: int = 0, lr: float = 1e-3, width: int = 8) -> None:
        super().__init__(spec, num_classes)
        self.lr = lr
        layers = [
            nn.Conv2d(spec.channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Dropout(0.2),
            nn.SiLU(),
        ]
        self.net = nn.Sequential(*layers, nn.Conv2d(width, spec.channels, 3, padding=1))

    def training_loss(self, x, label):
        return (self.net(x + torch.randn_like(x)) - x).square().flatten(1).mean(1), {}

    def optimizer(self):
        return torch.optim.Adam(self.net.parameters(), lr=self.lr)

    @torch.no_grad()
    def sample(self, n, condition=None, generator=None):
        return self.sampling_net.eval()(torch.randn(n, *self.spec.shape, generator=generator)).clamp(-1, 1)


@pytest.fixture
def toy(monkeypatch):
    """Registers the toy model under the name 'toy' and returns its class."""
    import verisim.models as models

    monkeypatch.setitem(MODELS, "toy", "unused:Toy")
    real = models.model_class
    for module in ("verisim.models", "verisim.tasks.generation"):
        monkeypatch.setattr(f"{module}.model_class", lambda n: Toy if n == "toy" else real(n), raising=False)
    return Toy


@pytest.fixture
def noise_images() -> Images:
    """100 random 16x16 images in [-1, 1]."""
    x = torch.rand(100, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Images(x, ImageSpec((16, 16)), torch.arange(100) % 2)


@pytest.fixture
def real_data() -> Path:
    """Folder of real images, from VERISIM_DATA."""
    folder = os.environ.get("VERISIM_DATA")
    if not folder:
        pytest.skip("VERISIM_DATA is not set: no real images to test with")
    return Path(folder)
