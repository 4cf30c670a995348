"""Growing brains seen twice, as scanners deliver them: the head lies differently the second time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from verisim.data.align import carried
from verisim.data.visits import Scan
from verisim.phantoms import growing_brain
from verisim.seeding import generator


def phantom_visits(subjects: int, size: int, seed: int, weeks: float = 2.0) -> list[Scan]:
    """Growing brains seen twice, `weeks` apart; the second time turned by up to 10 degrees and shifted by up to 8 mm."""
    g = generator("two-visits", seed)
    who = torch.arange(subjects)
    first = 30 + 10 * torch.rand(subjects, generator=g)
    scans = []
    for visit, ages in enumerate((first, first + weeks)):
        made = growing_brain.scan(who, ages, seed, (size,) * 3).images
        assert made.patients is not None and made.spec.spacing is not None
        affine = np.diag([made.spec.spacing[0]] * 3 + [1.0])[[2, 1, 0, 3]]  # w to the right, d upwards
        for x, name in zip(made.pixels, made.patients):
            if visit:
                pose = 2 * torch.rand(6, generator=g) - 1
                x = moved(x, 10 * pose[:3], 8 * pose[3:] / made.spec.spacing[0])
            scans.append(Scan(f"{name}-visit{visit + 1}", name, 7 * weeks * visit, x, affine))
    return sorted(scans, key=lambda s: (s.patient, s.days))


def moved(x: Tensor, degrees: Tensor, pixels: Tensor) -> Tensor:
    """A volume (1, D, H, W) turned about its middle in the planes (d, h), (d, w), (h, w), and shifted."""
    skew = torch.zeros(3, 3, dtype=torch.float64)
    for (i, j), angle in zip(((0, 1), (0, 2), (1, 2)), torch.deg2rad(degrees.double())):
        skew[i, j], skew[j, i] = -angle, angle
    matrix = np.eye(4)
    matrix[:3, :3] = torch.linalg.matrix_exp(skew).numpy()
    middle = (np.array(x.shape[1:]) - 1) / 2
    matrix[:3, 3] = middle + pixels.double().numpy() - matrix[:3, :3] @ middle
    return carried(x, matrix, tuple(x.shape[1:]), background=float(x.min()))[0]
