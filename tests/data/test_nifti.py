"""NIfTI: geometry survives exactly; headers that no scanner writes are refused by name."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from hostile import nifti, noise

from verisim.data.readers import read_image
from verisim.errors import DataError

OBLIQUE = np.array([[0.8, 0.1, 0.3, -80], [-0.1, 0.9, 0.2, 40.5], [0.2, -0.1, 2.4, 3], [0, 0, 0, 1]])


def test_axes_affine_and_spacing(tmp_path):
    """(i, j, k) -> (w, h, d): values move with the axes, and the affine gives the same place in mm."""
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    raw = read_image(nifti(tmp_path / "a.nii.gz", array, OBLIQUE))
    assert raw.array.shape == (1, 7, 6, 5)
    assert raw.array[0, 3, 2, 1] == array[1, 2, 3]
    stored = nib.load(tmp_path / "a.nii.gz").affine
    assert np.array_equal(raw.affine @ [3, 2, 1, 1], stored @ [1, 2, 3, 1])
    assert raw.spacing == pytest.approx(tuple(np.linalg.norm(OBLIQUE[:3, :3], axis=0)[::-1]))


def test_number_types(tmp_path):
    """Big-endian, int16 with a rescale, uint8 and bool-like data; only plain uint8 has a known range."""
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(np.arange(24, dtype=">i2").reshape(2, 3, 4), np.eye(4), header)
    nib.save(image, tmp_path / "big.nii")
    assert read_image(tmp_path / "big.nii").array.max() == 23
    scaled = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    scaled.header.set_slope_inter(2.0, -10.0)
    path = tmp_path / "s.nii"
    path.write_bytes(scaled.to_bytes())
    raw_bytes = bytearray(path.read_bytes())
    raw_bytes[112:120] = np.array([2.0, -10.0], np.float32).tobytes()  # scl_slope, scl_inter
    path.write_bytes(bytes(raw_bytes))
    assert read_image(path).array.min() == -10 and read_image(path).array.max() == 36
    raw_bytes[112:116] = np.array([0.0], np.float32).tobytes()  # slope 0 means: not scaled
    path.write_bytes(bytes(raw_bytes))
    assert read_image(path).array.max() == 23
    assert read_image(nifti(tmp_path / "u.nii", noise(0, (3, 4, 5)))).range == (0, 255)
    assert read_image(path).range is None


def test_time_series_needs_a_choice(tmp_path):
    """4D is refused with its sizes; a trailing 1 is not 4D; a single slice is an image."""
    path = nifti(tmp_path / "t.nii", noise(1, (3, 4, 5, 6)))
    with pytest.raises(DataError, match=r"4 dimensions \(3 x 4 x 5 x 6\): 6 volumes.*frame=0"):
        read_image(path)
    from verisim.data.nifti import read_nifti

    assert (read_nifti(path, frame=2).array[0] == noise(1, (3, 4, 5, 6))[..., 2].T).all()
    with pytest.raises(DataError, match="frame 6 asked for; it has frames 0 to 5"):
        read_nifti(path, frame=6)
    assert read_image(nifti(tmp_path / "one.nii", noise(2, (3, 4, 5, 1)))).array.shape == (1, 5, 4, 3)
    assert read_image(nifti(tmp_path / "flat.nii", noise(2, (3, 4, 1)))).array.shape == (1, 4, 3)


def _patched(tmp_path, offset, value, name="p.nii"):
    path = nifti(tmp_path / name, noise(3, (4, 5, 6)))
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(bytes(data))
    return path


def test_bad_dimensions(tmp_path):
    """Huge, negative and zero sides; more data promised than there is."""
    huge = _patched(tmp_path, 42, np.array([32767] * 3, np.int16).tobytes())
    with pytest.raises(DataError, match="32767 x 32767 x 32767 = 35,181,150,961,663 values"):
        read_image(huge)
    for side in (-5, 0):
        with pytest.raises(DataError, match=r"p\.nii"):
            read_image(_patched(tmp_path, 42, np.array([side], np.int16).tobytes()))
    with pytest.raises(DataError, match="truncated: 472 bytes where the header promises 752"):
        read_image(_patched(tmp_path, 46, np.array([20], np.int16).tobytes()))


def test_bad_affines(tmp_path):
    """A zero, a singular and a NaN matrix are refused; disagreeing forms and no form are noted."""
    with pytest.raises(DataError, match=r"affine is singular.*Repair the sform"):
        read_image(_patched(tmp_path, 280, np.zeros(12, np.float32).tobytes()))
    with pytest.raises(DataError, match="singular or not finite"):
        read_image(_patched(tmp_path, 280, np.full(12, np.nan, np.float32).tobytes()))
    image = nib.Nifti1Image(noise(4, (4, 5, 6)), np.eye(4))
    image.set_sform(np.diag([1, 1, 1, 1.0]), 1)
    image.set_qform(np.diag([1, 1, 3, 1.0]), 1)
    nib.save(image, tmp_path / "q.nii")
    assert "sform and qform disagree by up to 10.0 mm" in read_image(tmp_path / "q.nii").notes[0]
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "n.nii")
    assert "no orientation stored" in read_image(tmp_path / "n.nii").notes[0]


def test_values_that_are_no_numbers(tmp_path):
    """NaN and Inf are refused by default and kept for inspection; complex and RGB data are refused."""
    array = np.ones((3, 4, 5), np.float32)
    array[0, 0, :2] = np.nan, np.inf
    path = nifti(tmp_path / "nan.nii.gz", array)
    with pytest.raises(DataError, match="2 of 60 values are NaN or Inf"):
        read_image(path)
    assert np.isnan(read_image(path, finite=False).array).sum() == 1
    with pytest.raises(DataError, match="complex numbers"):
        read_image(nifti(tmp_path / "c.nii", array.astype(np.complex64)))
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="one real grey level"):
        read_image(nifti(tmp_path / "rgb.nii", rgb))


def test_names_and_truncation(tmp_path):
    """Wrong endings are named with the right one; a cut .nii.gz is called truncated."""
    plain = nifti(tmp_path / "a.nii", noise(5, (9, 9, 9)))
    plain.rename(tmp_path / "b.nii.gz")
    with pytest.raises(DataError, match=r"content is not compressed.*Rename it to end in \.nii,"):
        read_image(tmp_path / "b.nii.gz")
    packed = gzip.compress((tmp_path / "b.nii.gz").read_bytes())
    (tmp_path / "c.nii").write_bytes(packed)
    with pytest.raises(DataError, match=r"content is compressed. Rename it to end in \.nii\.gz"):
        read_image(tmp_path / "c.nii")
    (tmp_path / "d.nii.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"d\.nii\.gz: .*(truncated)"):
        read_image(tmp_path / "d.nii.gz")
