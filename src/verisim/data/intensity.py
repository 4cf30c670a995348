"""From stored units to the model's range: by the file's own range, a window, or training percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from verisim.data.raw import RawImage
from verisim.errors import DataError

Window = tuple[float, float] | Literal["each", "header"] | None
PERCENTILES = (0.5, 99.5)
MAX_SAMPLE = 4_000_000  # values that a percentile is taken from


def kind_of(raw: RawImage) -> str:
    """Images of one kind share their black and white: '8-bit' by its type, others by format and type."""
    if raw.range is not None:
        return f"range {raw.range[0]:g}..{raw.range[1]:g}"
    return f"{raw.format} {raw.stored}"


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """(0.5th, 99.5th percentile) of the finite values; never empty."""
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.size // MAX_SAMPLE)]
    flat = flat[np.isfinite(flat)].astype(np.float64)
    low, high = np.percentile(flat, PERCENTILES) if flat.size else (0.0, 1.0)
    if high <= low:  # nearly all values equal: the true extremes, or one unit
        low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


def levels(
    raws: Sequence[RawImage],  # facts of each image (its array is not used)
    pixels: np.ndarray,  # (N, C, *S) stored units; NaN where padded
    training: np.ndarray,  # (N,) bool: images that percentiles may look at
    window: Window,
) -> tuple[np.ndarray, dict[str, tuple[float, float] | str]]:
    """(N, 2) float64 black and white of each image, and the rule used for each kind."""
    if isinstance(window, tuple):
        _require_window(window)
        return np.tile(np.array(window, dtype=np.float64), (len(raws), 1)), {"all images": window}
    if window == "each":
        return np.array([robust_range(x) for x in pixels]), {"all images": "each image's own percentiles"}
    if window == "header":
        return np.array([_header(r, i) for i, r in enumerate(raws)]), {
            "all images": "display window in header"
        }
    if window is not None:
        raise DataError(f"window='{window}': allowed are (low, high), 'each', 'header' or None.")
    out = np.zeros((len(raws), 2))
    rules: dict[str, tuple[float, float] | str] = {}
    kinds = np.array([kind_of(r) for r in raws])
    for kind in sorted(set(kinds.tolist())):
        mine = np.flatnonzero(kinds == kind)
        known = raws[mine[0]].range
        look = mine[training[mine]] if training[mine].any() else mine
        rules[kind] = known if known is not None else robust_range(_thin(pixels, look))
        out[mine] = rules[kind]
    return out, rules


def _thin(pixels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """At most MAX_SAMPLE values of the chosen images, every k-th, the same every time."""
    each = max(1, MAX_SAMPLE // max(1, len(index)))
    return np.concatenate([x[:: max(1, x.size // each)] for x in (pixels[i].reshape(-1) for i in index)])


def _require_window(window: Sequence[float]) -> tuple[float, float]:
    if len(window) != 2 or not np.isfinite(window).all() or window[0] >= window[1]:
        raise DataError(
            f"window={tuple(window)}: must be two finite numbers (low, high) in stored units, low < high."
        )
    return float(window[0]), float(window[1])


def _header(raw: RawImage, index: int) -> tuple[float, float]:
    if "window" not in raw.meta:
        raise DataError(f"window='header': image {index} ({raw.format}) stores no display window. Give the "
                        "window in numbers, or leave it out.")  # fmt: skip
    return raw.meta["window"]


def apply_levels(pixels: np.ndarray, black_white: np.ndarray, low: float, high: float) -> np.ndarray:
    """pixels (N, C, *S) in place: black -> low, white -> high, clipped; NaN (padding) -> low."""
    for x, (a, b) in zip(pixels, black_white):
        x -= np.float32(a)
        x *= np.float32((high - low) / (b - a))
        x += np.float32(low)
        np.clip(x, low, high, out=x)
        x[np.isnan(x)] = low
    return pixels
