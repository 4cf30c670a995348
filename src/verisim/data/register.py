"""Rigid registration of one scan to another, 2D and 3D, by mutual information (spec 002, A.6). Needs SimpleITK.

Turns and shifts alone, so sizes and shapes stay true. Position regression and reconstruction assume scans that lie alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verisim.errors import VerisimError

SHRINKING, LEAST_SIDE = (
    (4, 2, 1),
    24,
)  # factors from coarse to fine; those that leave fewer pixels a side are left out
BINS, SAMPLES, ITERATIONS = 32, 20_000, 200  # of the histogram; pixels compared; steps at each level
LEAST_SMOOTHING = 1.0  # pixels: without it, noise and the pixels' own grid hold the search where it begins


@dataclass(frozen=True)
class Registered:
    """A scan on the pixels of another."""

    pixels: Tensor  # (C, *S of the fixed image) float32
    matrix: (
        np.ndarray
    )  # (4, 4): (d, h, w, 1) of the fixed image -> (d, h, w, 1) of the moving one, in pixels; d = 0 in 2D


def register_rigid(
    moving: Tensor,  # (C, *S) the scan that is turned and shifted
    fixed: Tensor,  # (C, *S') the reference
    spacing: Sequence[float] | None = None,  # mm per pixel of both, order of S; None = 1 along all axes
    *,
    background: float = -1.0,  # value where the moving scan does not reach
    seed: int = 0,  # of the pixels that are compared
) -> Registered:
    """The moving scan, turned and shifted onto the fixed one; their first channels are compared.

    VerisimError if SimpleITK is missing or the two have different numbers of axes.
    """
    itk = _simpleitk()
    dims = fixed.ndim - 1
    if moving.ndim != fixed.ndim or dims not in (2, 3):
        raise VerisimError(
            f"register_rigid: shapes {tuple(moving.shape)} and {tuple(fixed.shape)}; both must be (C, H, W) or both "
            f"(C, D, H, W)."
        )
    mm = tuple(spacing) if spacing else (1.0,) * dims
    a, b = (_image(itk, x[0], mm) for x in (fixed, moving))
    transform = _optimised(itk, a, b, dims, seed)
    channels = [
        itk.GetArrayFromImage(itk.Resample(_image(itk, c, mm), a, transform, itk.sitkLinear, background))
        for c in moving
    ]
    return Registered(torch.from_numpy(np.stack(channels)), _matrix(transform, mm))


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise VerisimError(
            "Rigid registration needs SimpleITK, which is not installed: pip install 'verisim[registration]'."
        ) from error
    return SimpleITK


def _image(itk: Any, values: Tensor, mm: tuple[float, ...]) -> Any:
    """(*S) as an ITK image, whose axes run the other way round."""
    image = itk.GetImageFromArray(values.detach().cpu().float().numpy())
    image.SetSpacing(mm[::-1])
    return image


def _optimised(itk: Any, fixed: Any, moving: Any, dims: int, seed: int) -> Any:
    """The turn and shift with the greatest mutual information, from both images' centres of mass."""
    start = itk.CenteredTransformInitializer(
        itk.Cast(itk.RescaleIntensity(fixed), itk.sitkFloat32),
        itk.Cast(itk.RescaleIntensity(moving), itk.sitkFloat32),
        itk.Euler2DTransform() if dims == 2 else itk.Euler3DTransform(),
        itk.CenteredTransformInitializerFilter.MOMENTS,
    )
    method = itk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    size = fixed.GetSize()
    factors = [f for f in SHRINKING if min(size) // f >= LEAST_SIDE] or [1]
    shares = [min(1.0, SAMPLES * f**dims / math.prod(size)) for f in factors]
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(shares, seed + 1)  # 0 would mean the clock
    method.SetInterpolator(itk.sitkLinear)
    step = float(max(fixed.GetSpacing()))  # the first step moves the rim by a pixel
    method.SetOptimizerAsRegularStepGradientDescent(step, 1e-4, ITERATIONS, gradientMagnitudeTolerance=1e-8)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(factors)
    method.SetSmoothingSigmasPerLevel([max(f / 2, LEAST_SMOOTHING) for f in factors])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def _matrix(transform: Any, mm: tuple[float, ...]) -> np.ndarray:
    """The map of pixels, read off at the origin and one pixel along every axis."""
    dims = len(mm)

    def carried(index: np.ndarray) -> np.ndarray:  # pixels (d, h, w) -> pixels of the moving image
        return np.array(transform.TransformPoint((index * mm)[::-1].tolist()))[::-1] / mm

    origin = carried(np.zeros(dims))
    matrix = np.eye(4)
    first = 3 - dims
    matrix[first:3, 3] = origin
    for k in range(dims):
        matrix[first:3, first + k] = carried(np.eye(dims)[k]) - origin
    return matrix
