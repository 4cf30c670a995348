"""check: everything wrong is found and named; nothing is found where nothing is wrong."""

import numpy as np
import pytest
from hostile import dicom, manifest, nifti, noise, png, png_folder, stack
from PIL import Image

from verisim.data.check import check
from verisim.data.folder import load_images
from verisim.errors import DataError


def titles(report, severity=None):
    """Title -> items of the problems found."""
    return {p.title: p.items for p in report.problems if severity in (None, p.severity)}


def test_clean_folder(tmp_path):
    """120 different images with patients, splits and labels: nothing to complain about, all counted."""
    report = check(png_folder(tmp_path, 120, split=True))
    assert report.exit_code == 0 and not titles(report, "error") and not titles(report, "warning")
    assert report.images == 120 and report.counts["size"] == {"32 x 32": 120}
    assert report.counts["split"] == {"train": 118, "test": 2} and report.labels == {
        "label": {"a": 60, "b": 60}
    }
    assert report.facts["patients"] == "60 (test 1, train 59)"


def test_everything_at_once(tmp_path):
    """Each fault of a spoiled folder is found, under its own title, with the file that has it."""
    png_folder(tmp_path, 12, split=True)
    images = tmp_path / "images"
    (images / "000.png").write_bytes(b"")
    (images / "003.png").write_bytes((images / "002.png").read_bytes())
    Image.open(images / "004.png").save(images / "005.png", compress_level=0)
    png(images / "006.png", np.full((32, 32), 9, np.uint8))
    png(images / "007.png", noise(7, (20, 30)))
    png(images / "008.png", noise(8, (32, 32, 3)))
    png(images / "009.png", noise(9, (32, 32)).astype(np.uint16) * 99)
    (images / "010.png").unlink()
    png(images / "extra.png", noise(50, (32, 32)))
    text = (
        (tmp_path / "manifest.csv")
        .read_text()
        .replace("images/001.png,p0,b,test", "images/001.png,p0,b,train")
    )
    (tmp_path / "manifest.csv").write_text(text)
    report = check(tmp_path)
    found = titles(report)
    want = {
        "Files that cannot be read": "images/000.png: empty file",
        "Identical files under different names": "images/002.png = images/003.png",
        "Identical pixels in different files": "images/004.png = images/005.png",
        "Constant images": "images/006.png: every value is 9",
        "Mixed sizes": "20 x 30: 1 image(s) (images/007.png)",
        "Mixed grey and colour": "RGB: 1 image(s) (images/008.png)",
        "Mixed number types": "uint16: 1 image(s) (images/009.png)",
        "Manifest rows whose file is missing": "images/010.png",
        "Image files that no manifest row names": "images/extra.png",
        "Patients in more than one split": "p0: test, train",
        "Only 10 image(s)": None,
    }
    for title, item in want.items():
        (match,) = [t for t in found if t.startswith(title)]
        assert item is None or any(i.startswith(item) for i in found[match]), (title, found[match])
    assert report.exit_code == 1


def test_same_image_in_two_splits(tmp_path):
    """A copy that connects training and test is an error, not a warning."""
    png_folder(tmp_path, 12, split=True)
    (tmp_path / "images/005.png").write_bytes((tmp_path / "images/000.png").read_bytes())
    found = titles(check(tmp_path), "error")
    assert found["The same image in more than one split"] == (
        "images/000.png [test] = images/005.png [train]",
    )


def test_values_and_label_columns(tmp_path):
    """NaN and Inf are counted; a label column with one class is named; masks are not taken for images."""
    rows = []
    for i in range(4):
        array = np.random.default_rng(i).normal(size=(6, 5, 4)).astype(np.float32)
        array[0, 0, 0] = np.nan if i == 2 else 0
        nifti(tmp_path / f"{i}.nii.gz", array)
        nifti(tmp_path / f"{i}_seg.nii.gz", (array > 0).astype(np.uint8))
        rows.append({"image": f"{i}.nii.gz", "mask": f"{i}_seg.nii.gz", "label": "same"})
    manifest(tmp_path, rows)
    report = check(tmp_path)
    found = titles(report)
    assert found["Images with NaN or infinite values"] == ("2.nii.gz: 1 values",)
    assert "Column 'label' holds one class only ('same')" in found
    assert report.images == 3 and report.counts["other files"] == {"label map or mask": 4}
    assert not any(t.startswith("Mixed") for t in found)


def test_mixed_orientations(tmp_path):
    """Volumes that are mirrored against each other are reported; the loader notes it too and turns nothing."""
    for i in range(4):
        nifti(tmp_path / f"{i}.nii", noise(i, (8, 8, 8)), np.diag([-1.0 if i == 3 else 1.0, 1, 1, 1]))
    found = titles(check(tmp_path), "warning")
    assert found["Mixed orientations (most are SAR); the others"] == ("SAL: 1 image(s) (3.nii)",)
    data = load_images(tmp_path, (8, 8, 8), split=None)
    assert any("images lie differently in space (3 SAR, 1 SAL)" in n for n in data.notes)
    assert np.allclose(data["all"].pixels[3, 0].numpy(), noise(3, (8, 8, 8)).T / 127.5 - 1, atol=1e-6)


def test_dicom(tmp_path):
    """A regular series is announced, an irregular one reported, and no person named."""
    stack(tmp_path / "good")
    report = check(tmp_path / "good")
    assert titles(report, "note")["DICOM series that form a volume"][0].endswith("(6 slices)")
    assert "DICOM files not marked as de-identified" in titles(report, "warning")
    text = repr(report)
    assert "Secret" not in text and "SECRET" not in text and "4711" not in text
    stack(tmp_path / "bad")[2].unlink()
    assert (
        "1 slice(s) missing" in titles(check(tmp_path / "bad"))["DICOM series that form no regular volume"][0]
    )
    dicom(
        tmp_path / "bad" / "z.dcm",
        np.ones((4, 5)),
        change=lambda ds: setattr(ds, "preamble", b"MZ" + b"\0" * 126),
    )
    assert "DICOM files whose preamble looks like a program" in titles(check(tmp_path / "bad"))


def test_near_duplicates(tmp_path):
    """A slightly brighter copy is found only when asked for; different images are not near."""
    png_folder(tmp_path, 6)
    smooth = (np.add.outer(np.arange(32), np.arange(32) ** 1.5)).clip(0, 250).astype(np.uint8)
    png(tmp_path / "images/001.png", smooth)
    png(tmp_path / "images/002.png", smooth + np.uint8(2))
    assert "Nearly identical images" not in titles(check(tmp_path))
    (pair,) = titles(check(tmp_path, near_duplicates=True))["Nearly identical images"]
    assert pair.startswith("images/001.png ~ images/002.png")


def test_nothing_usable(tmp_path):
    """Only damaged files: code 2; an empty folder and a missing one are errors."""
    (tmp_path / "a.png").write_bytes(b"")
    report = check(tmp_path)
    assert report.exit_code == 2 and not report.usable
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="no images found"):
        check(tmp_path)
