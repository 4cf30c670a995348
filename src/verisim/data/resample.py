"""Bring an image to another size: exact area averaging down, linear interpolation up, any dimension.

Separable: one (n_out, n_in) matrix per axis. Rows sum to 1, so a constant stays constant; down by any
factor keeps the mean exactly (each input pixel has the same total weight).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Fit = Literal["pad", "crop", "stretch"]


def area_matrix(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in) float64: overlap of each output pixel's interval with each input pixel's."""
    edges = np.arange(n_out + 1) * (n_in / n_out)  # output pixel borders in input pixels
    left = np.maximum(edges[:-1, None], np.arange(n_in)[None])
    right = np.minimum(edges[1:, None], np.arange(1, n_in + 1)[None])
    overlap = np.clip(right - left, 0, None)
    return overlap / overlap.sum(axis=1, keepdims=True)


def linear_matrix(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in) float64: linear interpolation at pixel centres, edges held."""
    centre = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    low = np.minimum(np.floor(centre).astype(int), max(n_in - 2, 0))
    weight = centre - low
    matrix = np.zeros((n_out, n_in))
    matrix[np.arange(n_out), low] += 1 - weight
    matrix[np.arange(n_out), np.minimum(low + 1, n_in - 1)] += weight
    return matrix


def resize(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """array (C, *S) -> (C, *size) float32."""
    out = array
    for axis, n_out in enumerate(size, start=1):
        n_in = array.shape[axis]
        if n_in != n_out:
            matrix = (area_matrix if n_out < n_in else linear_matrix)(n_in, n_out).astype(np.float32)
            out = np.moveaxis(np.tensordot(out, matrix, axes=(axis, 1)), -1, axis)
    return np.ascontiguousarray(out, dtype=np.float32)


def nearest(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """array (C, *S) -> (C, *size) of the same type: the input pixel that holds each output pixel's centre.

    A centre on the border of two pixels takes the one behind it.
    """
    out = array
    for axis, n_out in enumerate(size, start=1):
        n_in = array.shape[axis]
        out = np.take(out, (2 * np.arange(n_out) + 1) * n_in // (2 * n_out), axis)
    return np.ascontiguousarray(out)


def content_size(have: tuple[int, ...], want: tuple[int, ...], fit: Fit) -> tuple[int, ...]:
    """Size that an image of size `have` is resampled to before it is padded or cropped to `want`."""
    if fit == "stretch":
        return tuple(want)
    ratios = [w / h for w, h in zip(want, have)]
    scale = min(ratios) if fit == "pad" else max(ratios)
    limit = min if fit == "pad" else max
    return tuple(limit(w, max(1, round(h * scale))) for h, w in zip(have, want))


def fit_image(
    array: np.ndarray, size: tuple[int, ...], fit: Fit, codes: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """array (C, *S) at `size`, and the (4, 4) map from new to old (d, h, w, 1) indices.

    'pad' keeps the pixel grid's aspect and fills with NaN on both sides; 'crop' keeps it and cuts the
    middle out; 'stretch' fills the size and changes the aspect.
    codes: the array is a label map: nearest neighbour, filled with 0, of its own type.
    """
    have = array.shape[1:]
    content = content_size(have, size, fit)
    out = (nearest if codes else resize)(array, content)
    before = [(w - c) // 2 for c, w in zip(content, size)]  # negative: cut away
    cut = [slice(-b, -b + w) if b < 0 or c > w else slice(None) for b, c, w in zip(before, content, size)]
    out = out[(slice(None), *cut)]
    room = [(max(b, 0), max(w - c - max(b, 0), 0)) for b, c, w in zip(before, content, size)]
    if any(a or b for a, b in room):
        out = np.pad(out, [(0, 0), *room], constant_values=0 if codes else np.nan)
    back = np.eye(4)
    for axis, (h, c, b) in enumerate(zip(have, content, before), start=3 - len(size)):
        back[axis, axis] = h / c
        back[axis, 3] = (0.5 - b) * h / c - 0.5  # old = (new - before + 0.5) * h / c - 0.5
    return out, back
