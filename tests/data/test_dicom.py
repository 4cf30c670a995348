"""DICOM: units, white, order and geometry are right, persons stay unknown, irregular stacks are refused."""

import numpy as np
import pytest
from hostile import dicom, noise, stack
from pydicom.encaps import encapsulate

from verisim.data.dicom_header import head_meta
from verisim.data.readers import read_image
from verisim.data.series import read_series
from verisim.errors import DataError

PIXELS = np.arange(20, dtype=np.uint16).reshape(4, 5) * 100


def test_rescale_and_meaning(tmp_path):
    """Values are slope * stored + intercept; 12 bits do not fix black and white; the window is kept."""

    def change(ds):
        ds.RescaleSlope, ds.RescaleIntercept = "2", "-1024"
        ds.WindowCenter, ds.WindowWidth = ["40", "50"], ["400", "350"]

    raw = read_image(dicom(tmp_path / "a.dcm", PIXELS, change=change))
    assert (raw.array[0] == PIXELS * 2.0 - 1024).all()
    assert (raw.range, raw.stored, raw.modality, raw.spacing) == (None, "12-bit", "MR", (0.5, 0.75))
    assert raw.meta["window"] == pytest.approx((-160, 239))


def test_monochrome1_is_inverted(tmp_path):
    """White-is-low films come out with white high, by the stored bits' range: 4095 - x."""
    raw = read_image(dicom(tmp_path / "a.dcm", PIXELS, photometric="MONOCHROME1"))
    assert (raw.array[0] == 4095 - PIXELS.astype(float)).all() and "inverted" in raw.notes[0]


def test_geometry_follows_the_standard(tmp_path):
    """Rows go down along the column direction, columns right along the row direction; LPS becomes RAS."""
    raw = read_image(dicom(tmp_path / "a.dcm", PIXELS, position=(10, 20, 30)))
    assert np.allclose(raw.affine @ [0, 0, 0, 1], [-10, -20, 30, 1])
    assert np.allclose(raw.affine @ [0, 2, 0, 1], [-10, -21, 30, 1])  # two rows of 0.5 mm
    assert np.allclose(raw.affine @ [0, 0, 2, 1], [-11.5, -20, 30, 1])  # two columns of 0.75 mm


def test_missing_geometry_is_not_invented(tmp_path):
    """Without position and spacing there is no affine, and a note says so."""
    raw = read_image(dicom(tmp_path / "a.dcm", PIXELS, position=None))
    assert raw.affine is None and raw.spacing is None and "no pixel size" in raw.notes[0]
    raw = read_image(dicom(tmp_path / "b.dcm", PIXELS, orientation=(0, 0, 0, 0, 0, 0)))
    assert raw.affine is None


def test_nobody_is_recognised(tmp_path):
    """No name, identifier, date or institution in anything that is kept; the patient is a hash."""
    path = dicom(tmp_path / "a.dcm", PIXELS)
    text = repr(read_image(path)) + repr(head_meta(path))
    for secret in ("Secret", "SECRET", "4711", "clinic", "19700101"):
        assert secret not in text
    assert head_meta(path)["patient"].startswith("dicom-") and not head_meta(path)["deidentified"]


def _jpeg2000(ds):
    """Compressed data of a kind that no installed decoder reads (or that is damaged)."""
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    ds.PixelData = encapsulate([b"no JPEG 2000 stream"])
    ds["PixelData"].VR = "OB"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-4]), "pixel data of 36 bytes is truncated"),
        (lambda ds: setattr(ds, "Rows", 3), "longer than that: 3 rows x 5 columns"),
        (lambda ds: setattr(ds, "Columns", 65535), "truncated: 4 rows x 65535 columns"),
        (lambda ds: setattr(ds, "NumberOfFrames", 2_000_000_000), "its header promises 2000000000 x 4 x 5"),
        (lambda ds: setattr(ds, "RescaleSlope", "0"), "rescale slope 0.0"),
        (lambda ds: ds.__delitem__("PixelData"), "without an image"),
        (_jpeg2000, "cannot be decoded .transfer syntax: JPEG 2000"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The number of bytes of compressed")
def test_damaged_files(tmp_path, change, text):
    """Wrong sizes, a useless slope, no pixels, an absent codec: each has its own sentence."""
    with pytest.raises(DataError, match=text):
        read_image(dicom(tmp_path / "a.dcm", PIXELS, change=change))


def test_no_dicom_mark(tmp_path):
    """Random bytes, also after the mark."""
    (tmp_path / "a.dcm").write_bytes(bytes(noise(0, (600,))))
    with pytest.raises(DataError, match="mark 'DICM'"):
        read_image(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + bytes(noise(1, (600,))))
    with pytest.raises(DataError, match=r"b\.dcm"):
        read_image(tmp_path / "b.dcm")


def test_frames_without_positions(tmp_path):
    """Several frames are a volume in stored order, without an invented geometry."""
    raw = read_image(dicom(tmp_path / "a.dcm", np.stack([PIXELS, PIXELS + 1])))
    assert (
        raw.array.shape == (1, 2, 4, 5) and raw.affine is None and "frames without positions" in raw.notes[0]
    )


def test_series_is_sorted_by_position(tmp_path):
    """File names are shuffled; slices come out in the order of space, with the exact step."""
    stack(tmp_path / "s")
    raw = read_image(tmp_path / "s")
    assert raw.array[0, :, 0, 0].tolist() == [1, 11, 21, 31, 41, 51]
    assert raw.spacing == pytest.approx((2.0, 0.5, 0.75))
    assert np.allclose(raw.affine @ [5, 0, 0, 1], [3, -4, 17, 1])


def test_reversed_orientation_keeps_space(tmp_path):
    """With the normal pointing down, indices run the other way and the affine says the same places."""
    stack(tmp_path / "s", orientation=(1, 0, 0, 0, -1, 0))
    raw = read_image(tmp_path / "s")
    assert raw.array[0, :, 0, 0].tolist() == [51, 41, 31, 21, 11, 1]
    assert np.allclose(raw.affine @ [0, 0, 0, 1], [3, -4, 17, 1])


def _shift(k, by):
    def change(ds):
        if int(ds.pixel_array[0, 0]) == 10 * k + 1:
            ds.ImagePositionPatient = [a + b for a, b in zip(ds.ImagePositionPatient, by)]

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_shift(3, (0, 0, 0.7)), "unequal slice spacing"),
        (_shift(3, (0, 0, -2.0)), "lie at the same position"),
        (_shift(5, (0, 0, 4.0)), r"2 slice\(s\) missing between .* \(6.00 mm apart, 2.00 mm elsewhere\)"),
        (_shift(3, (5.0, 0, 0)), "shifted sideways .* up to 5.00 mm"),
    ],
)  # fmt: skip
def test_irregular_stacks(tmp_path, change, text):
    """Unequal, repeated, missing and displaced slices are refused with the files and millimetres."""
    stack(tmp_path / "s", change=change)
    with pytest.raises(DataError, match=text):
        read_image(tmp_path / "s")


def test_mixed_series(tmp_path):
    """Two series, two grids, two slopes in one folder are not one volume; PET may change its slope."""
    files = stack(tmp_path / "s")
    extra = dicom(tmp_path / "s" / "x.dcm", PIXELS, series="9.9.9", position=(-3, 4, 19))
    with pytest.raises(DataError, match=r"7 files of 2 different series \(.*\)\. Put each"):
        read_image(tmp_path / "s")
    extra.unlink()
    dicom(tmp_path / "s" / "x.dcm", np.ones((7, 5)), position=(-3, 4, 19))
    with pytest.raises(DataError, match="not one volume"):
        read_image(tmp_path / "s")

    def slope(ds):
        ds.RescaleSlope = str(1 + int(ds.pixel_array[0, 0]))

    def pet(ds):
        slope(ds)
        ds.Modality = "PT"

    with pytest.raises(DataError, match="6 different rescale slopes"):
        read_series(stack(tmp_path / "m", change=slope))
    assert read_series(stack(tmp_path / "p", change=pet)).array[0, 1, 0, 1] == 100 * 12
    with pytest.raises(DataError, match="no DICOM files"):
        (tmp_path / "e").mkdir()
        read_image(tmp_path / "e")
    assert len(files) == 6


def test_gantry_tilt_is_kept(tmp_path):
    """A sheared stack keeps its shear in the affine, and says so."""

    def tilt(ds):
        ds.ImagePositionPatient = [
            -3,
            4 + float(ds.ImagePositionPatient[2]) * 0.2,
            ds.ImagePositionPatient[2],
        ]

    raw = read_series(stack(tmp_path / "s", change=tilt))
    assert "gantry tilt 11.3 degrees" in raw.notes[-1]
    assert np.allclose(raw.affine[:3, 0], [0, -0.4, 2.0])
