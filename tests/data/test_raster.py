"""PNG, JPEG, TIFF: every kind of pixel is read as what it is; damaged files give one clear sentence."""

import numpy as np
import pytest
import tifffile
from hostile import huge_png, noise, png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from verisim.data.readers import read_image
from verisim.errors import DataError


def test_grey_png_is_exact(tmp_path):
    """8 bit: the numbers come back as they are, with the type's range as black and white."""
    array = noise(0)
    raw = read_image(png(tmp_path / "a.png", array))
    assert (raw.array[0] == array).all() and raw.array.dtype == np.float32
    assert (raw.range, raw.stored, raw.mode, raw.size) == ((0, 255), "uint8", "grey", (24, 20))


def test_sixteen_bits_survive(tmp_path):
    """16-bit PNG and TIFF keep all 16 bits, and do not claim that 65535 is white."""
    array = np.arange(24 * 20, dtype=np.uint16).reshape(24, 20) * 136
    Image.fromarray(array).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", array)
    for name in ("a.png", "a.tif"):
        raw = read_image(tmp_path / name)
        assert (raw.array[0] == array).all() and raw.range is None and raw.stored == "uint16"


def test_colour_alpha_and_palette(tmp_path):
    """RGB keeps its channels; an opaque alpha is dropped, a transparent one put on black; a grey palette is grey."""
    rgb = noise(1, (8, 9, 3))
    assert (read_image(png(tmp_path / "rgb.png", rgb)).array == np.moveaxis(rgb, -1, 0)).all()
    opaque = np.dstack([rgb, np.full((8, 9), 255, np.uint8)])
    raw = read_image(png(tmp_path / "rgba.png", opaque))
    assert raw.mode == "RGBA" and (raw.array == np.moveaxis(rgb, -1, 0)).all() and not raw.notes
    clear = np.dstack([rgb, np.zeros((8, 9), np.uint8)])
    raw = read_image(png(tmp_path / "clear.png", clear))
    assert (raw.array == 0).all() and raw.notes == ("partly transparent: put on black",)
    grey = noise(2, (8, 9))
    raw = read_image(png(tmp_path / "p.png", grey, "P"))
    assert raw.mode == "palette" and raw.array.shape == (1, 8, 9) and (raw.array[0] == grey).all()
    bits = read_image(png(tmp_path / "bit.png", (grey > 127).astype(np.uint8) * 255, "1"))
    assert bits.range == (0, 1) and set(np.unique(bits.array)) == {0, 1}


def test_tiff_kinds(tmp_path):
    """White-is-zero is inverted; a grey stack is a volume; LZW and float work; complex is refused."""
    array = noise(3)
    tifffile.imwrite(tmp_path / "w.tif", array, photometric="miniswhite")
    assert (read_image(tmp_path / "w.tif").array[0] == 255 - array).all()
    tifffile.imwrite(tmp_path / "s.tif", noise(4, (5, 24, 20)), photometric="minisblack")
    assert read_image(tmp_path / "s.tif").array.shape == (1, 5, 24, 20)
    Image.fromarray(array).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    assert (read_image(tmp_path / "lzw.tif").array[0] == array).all()
    tifffile.imwrite(tmp_path / "f.tif", array.astype(np.float32) / 7)
    assert np.allclose(read_image(tmp_path / "f.tif").array[0] * 7, array)
    tifffile.imwrite(tmp_path / "c.tif", array.astype(np.complex64))
    with pytest.raises(DataError, match="magnitude"):
        read_image(tmp_path / "c.tif")


def test_exif_orientation_is_applied(tmp_path):
    """A photographed film with an orientation mark is turned upright, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(5)).save(tmp_path / "a.jpg", exif=exif)
    raw = read_image(tmp_path / "a.jpg")
    assert raw.size == (20, 24) and "upright" in raw.notes[0]


def test_huge_header_is_refused_by_its_size(tmp_path):
    """A few bytes that promise 3.6 gigapixels must not take any memory."""
    with pytest.raises(DataError, match=r"60000|3600000000"):
        read_image(huge_png(tmp_path / "bomb.png"))
    with pytest.raises(DataError, match="40000 x 30000 x 1 = 1,200,000,000 values"):
        from verisim.data.raw import check_size

        check_size((40000, 30000, 1), "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.nii", "a.nii.gz", "a.dcm", "a.npz"])
def test_empty_and_garbage_files(tmp_path, name):
    """0 bytes and random bytes are told apart, by file name, for every format."""
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}: empty file \(0 bytes\)"):
        read_image(path)
    path.write_bytes(bytes(noise(6, (400,))))
    with pytest.raises(DataError, match=name):
        read_image(path)


def test_truncated_and_misnamed(tmp_path):
    """A cut file says so; a TIFF named .png says what it is; no file and no format are told apart."""
    path = png(tmp_path / "a.png", noise(7, (99, 99)))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"a\.png: damaged or truncated"):
        read_image(path)
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "c.tif", noise(7, (99, 99)), compression=compression, rowsperstrip=8)
        (tmp_path / "c.tif").write_bytes((tmp_path / "c.tif").read_bytes()[:-3000])
        with pytest.raises(DataError, match="truncated"):
            read_image(tmp_path / "c.tif")
    tifffile.imwrite(tmp_path / "t.tif", noise(8))
    (tmp_path / "t.tif").rename(tmp_path / "t.png")
    with pytest.raises(DataError, match=r"named \.png, but its content is TIF.*Rename it"):
        read_image(tmp_path / "t.png")
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "x.bmp").write_bytes(b"BM")
    with pytest.raises(DataError, match=r"not an image format.*\.nii\.gz"):
        read_image(tmp_path / "x.bmp")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_never_escape(tmp_path, data):
    """Whatever single bytes are changed, the result is an image or a DataError, nothing else."""
    kind = data.draw(st.sampled_from([".png", ".jpg", ".tif", ".nii", ".dcm", ".npz"]))
    good = bytearray(_good(tmp_path, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, min(len(good), 900) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"bad{kind}"
    path.write_bytes(bytes(good))
    try:
        read_image(path)
    except DataError as error:
        assert str(path) in str(error)


def _good(folder, kind):
    from hostile import dicom, nifti

    path = folder / f"good{kind}"
    if not path.exists():
        if kind in (".png", ".jpg", ".tif"):
            Image.fromarray(noise(9)).save(path)
        elif kind == ".nii":
            nifti(path, noise(9, (6, 5, 4)))
        elif kind == ".dcm":
            dicom(path, noise(9).astype(np.uint16))
        else:
            np.savez(path, images=noise(9, (3, 8, 8)))
    return path.read_bytes()
