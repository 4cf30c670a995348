"""PNG and JPEG through Pillow, TIFF through tifffile: grey, RGB, alpha, palette, 1, 8, 16 and 32 bit."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps

from verisim.data.raw import RawImage, check_size
from verisim.errors import DataError

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damage is reported here, by file name

STACKS = {"ZYX", "IYX", "QYX", "TYX"}  # TIFF axes that are read as a volume (D, H, W)
GREY16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_pillow(path: Path) -> RawImage:
    """A PNG, JPEG (or simple TIFF) as (1 or 3, H, W)."""
    try:
        image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: {error}. The header promises a far larger image than is sensible (a damaged or "
            "hostile file); leave it out or reduce it with another program."
        ) from error
    with image:
        check_size((*image.size[::-1], len(image.getbands())), path)
        notes: list[str] = []
        if (frames := getattr(image, "n_frames", 1)) > 1:
            notes.append(f"first of {frames} frames read")
        if image.format == "PNG" and _png_bits(path) == (16, True):
            notes.append("16-bit colour read as 8-bit")
        provenance = _text(image)
        upright = ImageOps.exif_transpose(image)
        if image.getexif().get(0x0112, 1) != 1:
            notes.append("turned upright as its EXIF orientation says")
        array, bounds, stored, mode = _pixels(upright, path, notes)
        if "range" in provenance:
            bounds = (0.0, float(2 ** provenance.get("bits", 8) - 1))
        meta = {"provenance": provenance} if provenance else {}
        spacing, affine = provenance.get("spacing"), provenance.get("affine")
        return RawImage(
            array,
            image.format or "PNG",
            stored,
            mode,
            bounds,
            None if spacing is None else tuple(spacing),
            None if affine is None else np.array(affine, dtype=np.float64),
            provenance.get("modality", "unknown"),
            tuple(notes),
            meta,
        )


def _pixels(image: Image.Image, path: Path, notes: list[str]):
    """array (C, H, W) float32, range, number type and mode of a Pillow image."""
    mode = image.mode
    if mode == "1":
        return np.asarray(image, np.float32)[None], (0.0, 1.0), "1-bit", "grey"
    if mode == "F":
        return np.asarray(image, np.float32)[None], None, "float32", "grey"
    if mode in GREY16:
        stored = "uint16" if mode != "I" else "int32"
        return np.asarray(image).astype(np.float32)[None], None, stored, "grey"
    if mode == "L" and "transparency" not in image.info:
        return np.asarray(image, np.float32)[None], (0.0, 255.0), "uint8", "grey"
    if mode in ("P", "L", "LA", "PA", "RGB", "RGBA", "RGBa", "La"):
        return _eight_bit(image, notes)
    if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notes.append(f"{mode} converted to RGB")
        return _channels_first(np.asarray(image.convert("RGB"))), (0.0, 255.0), "uint8", mode
    raise DataError(f"{path}: pixel mode '{mode}' is not supported. Save it as grey or RGB, 8 or 16 bit.")


def _eight_bit(image: Image.Image, notes: list[str]):
    """8-bit images with a palette, colour or transparency; transparency is put on black."""
    mode = {"P": "palette", "PA": "palette", "L": "grey", "LA": "grey+alpha", "La": "grey+alpha",
            "RGBa": "RGBA"}.get(image.mode, image.mode)  # fmt: skip
    rgba = np.asarray(image.convert("RGBA"), np.float32)  # (H, W, 4)
    colour, alpha = rgba[..., :3], rgba[..., 3:] / np.float32(255)
    if (alpha < 1).any():
        notes.append("partly transparent: put on black")
        colour = colour * alpha
    if mode == "palette" or image.mode in ("L", "LA", "La"):
        if (colour[..., :1] == colour).all():
            colour = colour[..., :1]  # a grey palette
    return _channels_first(colour), (0.0, 255.0), "uint8", mode


def _channels_first(array: np.ndarray) -> np.ndarray:
    """(..., H, W, C) -> (C, ..., H, W) float32."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 0), dtype=np.float32)


def _png_bits(path: Path) -> tuple[int, bool]:
    """(bit depth, is colour or has alpha) of a PNG file, from its IHDR chunk."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24], head[25] in (2, 4, 6)


def _text(image: Image.Image) -> dict:
    """The provenance that verisim wrote into this PNG, or {}."""
    text = getattr(image, "text", {}).get("verisim") if image.format == "PNG" else None
    found = json.loads(text) if text else {}
    return found if isinstance(found, dict) else {}


def read_tiff(path: Path) -> RawImage:
    """A TIFF as (1 or 3, H, W), or (1, D, H, W) for a stack of grey pages."""
    with tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        check_size(series.shape, path)
        if "imagecodecs" in _missing_codec(series) or series.keyframe.photometric == 3:
            return read_pillow(path)  # LZW, JPEG, palette: libtiff inside Pillow knows them
        notes = [f"first of {len(tif.series)} image series read"] if len(tif.series) > 1 else []
        _require_whole(series, path)
        array, axes = series.asarray(), series.axes
        inverted = series.keyframe.photometric == 0  # MINISWHITE
    keep = [i for i, s in enumerate(array.shape) if s > 1 or axes[i] in "YX"]
    array, axes = array.reshape([array.shape[i] for i in keep]), "".join(axes[i] for i in keep)
    return _tiff_array(array, axes, inverted, path, notes)


def _require_whole(series, path: Path) -> None:
    """Every strip that the header names must lie inside the file; tifffile would fill the gaps with zeros."""
    length = path.stat().st_size
    for page in (p for p in series.pages if p is not None):
        expected = int(np.prod(page.chunked, dtype=np.int64))
        counts, offsets = page.databytecounts, page.dataoffsets
        if len(offsets) < expected or any(o + c > length for o, c in zip(offsets, counts)):
            raise DataError(f"{path}: truncated: parts of its pixels are missing. Copy or export it again.")


def _missing_codec(series) -> str:
    """Why tifffile alone cannot decode this series, or ''."""
    try:
        _ = series.keyframe.decode
    except (ValueError, ImportError) as error:
        return str(error)
    known = {1, 8, 32946, 32773}  # none, deflate, old deflate, packbits
    return "" if int(series.keyframe.compression) in known else "imagecodecs"


def _tiff_array(array: np.ndarray, axes: str, inverted: bool, path: Path, notes: list[str]) -> RawImage:
    """RawImage from a TIFF array with named axes."""
    if array.dtype.kind not in "uifb":
        raise DataError(f"{path}: TIFF of {array.dtype} numbers; grey levels must be integer or real. "
                        "Save the magnitude instead.")  # fmt: skip
    if axes == "YX" or axes in STACKS:
        pixels, mode = array[None].astype(np.float32), "grey"
    elif axes in ("YXS", "SYX", "CYX", "YXC") and array.shape[axes.find("S" if "S" in axes else "C")] in (
        3,
        4,
    ):
        last = array if axes.startswith("YX") else np.moveaxis(array, 0, -1)
        pixels, mode = _channels_first(last[..., :3]), "RGB" if last.shape[-1] == 3 else "RGBA"
        if last.shape[-1] == 4:
            notes.append("fourth channel (alpha) left out")
    else:
        raise DataError(f"{path}: a TIFF with axes {axes} {array.shape} is neither an image, an RGB image "
                        "nor a stack of grey slices. Save one image or stack per file.")  # fmt: skip
    bounds = (0.0, 255.0) if array.dtype == np.uint8 else (0.0, 1.0) if array.dtype == bool else None
    if inverted:
        top = float(np.iinfo(array.dtype).max) if array.dtype.kind in "ui" else float(pixels.max())
        pixels = top - pixels
        notes.append("white-is-zero: inverted, so that white is high")
    return RawImage(pixels, "TIFF", str(array.dtype), mode, bounds, notes=tuple(notes))
