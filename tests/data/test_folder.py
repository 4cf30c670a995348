"""A folder becomes tensors: one size, one range, right classes, splits by patient; bad folders are refused."""

import json

import numpy as np
import pytest
import torch
from hostile import dicom, manifest, nifti, noise, png, png_folder, stack

from verisim.data.folder import load_images
from verisim.data.intensity import apply_levels, robust_range
from verisim.errors import DataError


def test_eight_bits_map_by_type(tmp_path):
    """0..255 becomes [-1, 1] whatever the image's own extremes: x = v / 127.5 - 1."""
    data = load_images(png_folder(tmp_path), 32, label="label")
    train = data["train"]
    i = train.names.index("images/002.png")
    assert torch.allclose(
        train.pixels[i, 0], torch.from_numpy(noise(2, (32, 32)) / 127.5 - 1).float(), atol=1e-6
    )
    assert (
        train.labels[i] == 0 and data.class_names == ("a", "b") and data.window == {"range 0..255": (0, 255)}
    )
    assert train.spec.check(train.pixels) is train.pixels and train.pixels.dtype == torch.float32


def test_split_is_made_by_patient_and_can_be_repeated(tmp_path):
    """No patient on both sides; the written-down split gives the same data set again."""
    data = load_images(png_folder(tmp_path), 16)
    assert not set(data["train"].patients) & set(data["test"].patients)
    assert any("split made by a hash" in n for n in data.notes)
    again = load_images(tmp_path, 16, split=json.loads(json.dumps(data.split_of)))
    assert again["test"].names == data["test"].names and again.fingerprint == data.fingerprint
    flat = load_images(tmp_path, 16, split=None)
    assert list(flat) == ["all"] and len(flat["all"]) == 12


def test_fingerprint_follows_content(tmp_path):
    """Another pixel, size or label changes it; renaming a file does not."""
    first = load_images(png_folder(tmp_path, split=True), 16, label="label").fingerprint
    assert load_images(tmp_path, 8, label="label").fingerprint != first
    text = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(text.replace("images/005.png", "images/renamed.png"))
    (tmp_path / "images/005.png").rename(tmp_path / "images/renamed.png")
    assert load_images(tmp_path, 16, label="label").fingerprint == first
    png(tmp_path / "images/renamed.png", noise(99, (32, 32)))
    assert load_images(tmp_path, 16, label="label").fingerprint != first


def test_given_split_is_checked(tmp_path):
    """A patient in two splits, an unknown word, a half-filled column: each is refused."""
    png_folder(tmp_path, split=True)
    text = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(
        text.replace("images/001.png,p0,b,test", "images/001.png,p0,b,train")
    )
    with pytest.raises(DataError, match="p0 in test and train"):
        load_images(tmp_path, 16)
    (tmp_path / "manifest.csv").write_text(text.replace("p0,b,test", "p0,b,tset"))
    with pytest.raises(DataError, match="row 3: split 'tset' is unknown"):
        load_images(tmp_path, 16)
    (tmp_path / "manifest.csv").write_text(text.replace("p0,b,test", "p0,b,"))
    with pytest.raises(DataError, match=r"1 image\(s\) have no split while others have"):
        load_images(tmp_path, 16)


def test_percentiles_look_at_training_images_only(tmp_path):
    """16-bit images get one black and white from the training split; extremes of the test split do not count."""
    rows = []
    for i in range(6):
        array = np.full((16, 16), 1000 + 100 * i, np.uint16)
        array[0, 0] = 60_000 if i == 5 else 1000
        png(tmp_path / f"{i}.png", array)
        rows.append({"image": f"{i}.png", "patient": str(i), "split": "test" if i == 5 else "train"})
    manifest(tmp_path, rows)
    data = load_images(tmp_path, 16)
    ((_, (low, high)),) = data.window.items()
    assert (low, high) == (1000, 1400)
    assert data["test"].pixels.max() == 1  # clipped, not a new white
    explicit = load_images(tmp_path, 16, window=(0, 2000))
    assert torch.allclose(explicit["train"].pixels[2, 0, 3, 3], torch.tensor(0.2))
    each = load_images(tmp_path, 16, window="each")
    assert each["train"].pixels[3].max() == 1
    with pytest.raises(DataError, match="low < high"):
        load_images(tmp_path, 16, window=(5, 5))
    with pytest.raises(DataError, match="stores no display window"):
        load_images(tmp_path, 16, window="header")


def test_mixed_kinds_are_brought_together_and_noted(tmp_path):
    """16-bit, RGB and RGBA beside grey 8-bit: all in range, each conversion noted."""
    png(tmp_path / "a.png", noise(0, (16, 16)))
    png(tmp_path / "b.png", noise(1, (16, 16, 3)))
    png(tmp_path / "c.png", noise(2, (16, 16, 4)))
    png(tmp_path / "d.png", noise(3, (16, 16)).astype(np.uint16) * 200)
    data = load_images(tmp_path, 16, split=None)
    assert len(data.window) == 2 and any("mixed modes" in n for n in data.notes)
    assert any("different rules" in n for n in data.notes) and any("put on black" in n for n in data.notes)
    luma = noise(1, (16, 16, 3)) @ np.array([0.299, 0.587, 0.114]) / 127.5 - 1
    assert np.allclose(data["all"].pixels[1, 0], luma, atol=1e-5)
    assert load_images(tmp_path, 16, channels=3, split=None)["all"].spec.channels == 3


def test_sizes(tmp_path):
    """Padding is black and keeps the aspect; enlarging is refused unless asked for; a volume is no image."""
    png(tmp_path / "a.png", np.full((33, 17), 255, np.uint8))
    png(tmp_path / "b.png", noise(0, (40, 40)))
    data = load_images(tmp_path, 16, split=None)
    row = data["all"].pixels[0, 0, 8]
    assert (row[:4] == -1).all() and (row[4:12] == 1).all() and (row[12:] == -1).all()
    with pytest.raises(DataError, match=r"40 x 40 pixels would have to be enlarged to 64 x 64"):
        load_images(tmp_path, 64, split=None, on_error="stop", limit=1, minimum=1)
    assert load_images(tmp_path, 64, split=None, enlarge=True)["all"].spec.size == (64, 64)
    with pytest.raises(DataError, match=r"an image of 33 x 17, where a volume of 8 x 8 x 8"):
        load_images(tmp_path, (8, 8, 8), split=None, on_error="stop")


def test_few_and_unreadable(tmp_path):
    """Empty folder, one image, unreadable files under both policies."""
    with pytest.raises(DataError, match="no such folder"):
        load_images(tmp_path / "none", 16)
    with pytest.raises(DataError, match="no images found"):
        load_images(tmp_path, 16)
    png(tmp_path / "a.png", noise(0, (16, 16)))
    with pytest.raises(DataError, match=r"1 image\(s\) to learn from, at least 2 are needed"):
        load_images(tmp_path, 16)
    (tmp_path / "bad.png").write_bytes(b"")
    png(tmp_path / "b.png", noise(1, (16, 16)))
    data = load_images(tmp_path, 16, split=None)
    assert data.skipped[0][0] == "bad.png" and "bad.png" in data.notes[-1]
    with pytest.raises(DataError, match=r"bad\.png: empty file"):
        load_images(tmp_path, 16, split=None, on_error="stop")


def test_labels(tmp_path):
    """One class, no such column, ids instead of classes, empty cells; numbers sort by value; folders name classes."""
    png_folder(tmp_path / "m")
    with pytest.raises(DataError, match=r"no label column 'lable'. Did you mean 'label'\? Columns: image"):
        load_images(tmp_path / "m", 16, label="lable")
    rows = [{"image": f"images/{i:03d}.png", "one": "x", "id": f"u{i}", "num": str(10 - i // 4), "gap": "ab "[i % 3]}
            for i in range(12)]  # fmt: skip
    manifest(tmp_path / "m", rows)
    with pytest.raises(DataError, match=r"column 'one' holds one class only \('x', 12 images\)"):
        load_images(tmp_path / "m", 16, label="one")
    assert load_images(tmp_path / "m", 16, label="num").class_names == ("8", "9", "10")
    gap = load_images(tmp_path / "m", 16, label="gap", split=None)
    assert len(gap["all"]) == 8 and any("4 image(s) without a 'gap'" in n for n in gap.notes)
    for i in range(24):
        png(tmp_path / "f" / "train" / ("sick" if i % 2 else "well") / f"{i}.png", noise(i, (8, 8)))
    data = load_images(tmp_path / "f", 8, label="folder")
    assert data.class_names == ("sick", "well") and list(data) == ["train"]


def test_manifest_faults(tmp_path):
    """Ragged rows, repeated images, paths out of the folder, missing files: what and in which row."""
    png_folder(tmp_path)

    def load(text):
        (tmp_path / "manifest.csv").write_text(text)
        return load_images(tmp_path, 16, minimum=1)

    for text, message in [
        ("", "empty"),
        ("image,image\na,b\n", "column 'image' appears twice"),
        ("image,patient\nimages/000.png\n", "line 2: 1 cells where the first line names 2"),
        ("image\nimages/000.png\nimages/000.png\n", "named in more than one row"),
        ("image\n../secret.png\n", "leads out of the folder"),
        ("file\nimages/000.png\n", r"no column 'image'.*Columns with files: file"),
        ("image\nimages/none.png\n", "none of 1 image"),
    ]:
        with pytest.raises(DataError, match=message):
            load(text)
    data = load("image\nimages/none.png\nimages/000.png\n")
    assert data.skipped[0] == ("images/none.png", "in the manifest, but not there")


def test_limit_is_deterministic_and_mixed(tmp_path):
    """limit takes the same few images every time, not the first of the list."""
    png_folder(tmp_path)
    names = load_images(tmp_path, 16, limit=4, split=None)["all"].names
    assert names == load_images(tmp_path, 16, limit=4, split=None)["all"].names
    assert len(names) == 4 and names != tuple(f"images/{i:03d}.png" for i in range(4))


def test_volumes_keep_their_place(tmp_path):
    """NIfTI and a DICOM series at a smaller size: spacing doubles, the corner's outer edge stays."""
    affine = np.array([[0.7, 0, 0, 5], [0, 1.1, 0, 6], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    for k in range(3):
        nifti(tmp_path / f"{k}.nii.gz", noise(k, (20, 12, 8)), affine)
    data = load_images(tmp_path, (4, 6, 10), split=None)
    assert data["all"].spec.spacing == pytest.approx((4, 2.2, 1.4))
    assert np.allclose(
        data.affines["all"][0] @ [-0.5, -0.5, -0.5, 1], affine @ [-0.5, -0.5, -0.5, 1], atol=1e-5
    )
    with pytest.raises(DataError, match="a volume of 8 x 12 x 20, where an image of 8 x 8"):
        load_images(tmp_path, 8, on_error="stop")
    stack(tmp_path / "dcm" / "one", 6, series="1.2")
    stack(tmp_path / "dcm" / "two", 6, series="1.3", step=3)
    series = load_images(tmp_path / "dcm", (6, 4, 5), split=None)
    assert series["all"].pixels.shape == (2, 1, 6, 4, 5) and series["all"].spec.spacing is None
    assert len(set(series["all"].patients)) == 1 and "SECRET" not in repr(series)


def test_dicom_slices_share_a_patient(tmp_path):
    """Slices of one person never fall into two splits, without any manifest."""
    stack(tmp_path, 6)
    dicom(tmp_path / "other.dcm", np.ones((4, 5)), change=lambda ds: setattr(ds, "PatientID", "another"))
    data = load_images(tmp_path, (4, 5), minimum=1)
    assert sorted(len(s) for s in data.values()) == [1, 6]


def test_range_is_never_empty():
    """Constant and all-padding images get a range of one unit, not a division by zero."""
    assert robust_range(np.full((3, 3), 7.0)) == (7, 8)
    assert robust_range(np.full(4, np.nan)) == (0, 1)
    out = apply_levels(np.full((1, 1, 2), 7.0, np.float32), np.array([[7.0, 8.0]]), -1, 1)
    assert (out == -1).all()
