"""The readers on real images (VERISIM_DATA): counts, geometry, and no crash on any folder."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from verisim.data.check import check
from verisim.data.folder import load_images
from verisim.data.readers import read_image
from verisim.data.spec import ImageSpec
from verisim.data.writers import write_image

ROOT = os.environ.get("VERISIM_DATA")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not ROOT, reason="VERISIM_DATA is not set: no real images to read"),
]


def _folder(name):
    folder = Path(ROOT or ".") / name
    if not folder.exists():
        pytest.skip(f"VERISIM_DATA holds no {name}")
    return folder


def test_chest_xrays():
    """832 images, 594 / 89 / 149 by patient, two classes, the full 8-bit range."""
    data = load_images(_folder("cxr_nih"), 32, label="group", progress=False)
    assert {k: len(v) for k, v in data.items()} == {"train": 594, "val": 89, "test": 149}
    groups = [set(s.patients) for s in data.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert data.class_names == ("no_findings", "pneumonia") and not data.skipped
    assert -1 <= data["train"].pixels.min() < -0.9 and 0.9 < data["train"].pixels.max() <= 1


def test_dicom_series():
    """24 slices of one MR series, sorted, 1.5 x 0.41 x 0.41 mm, positions as in the headers."""
    raw = read_image(_folder("mr_dicom_series"))
    assert raw.array.shape == (1, 24, 512, 512) and raw.modality == "MR"
    assert raw.spacing == pytest.approx((1.5, 0.41015625, 0.41015625), rel=1e-3)
    assert abs(np.linalg.det(raw.affine[:3, :3])) == pytest.approx(1.5 * 0.41015625**2, rel=1e-3)
    data = load_images(_folder("mr_dicom_series"), (24, 64, 64), split=None, minimum=1)
    assert data["all"].spec.spacing == pytest.approx((1.5, 3.28125, 3.28125), rel=1e-3)


@pytest.mark.parametrize("name", ["chris_PD.nii.gz", "chris_t1.nii.gz", "M2208_T2w.nii.gz"])
def test_affine_survives_reading_and_writing(tmp_path, name):
    """The affine of a written file equals the original's, and voxels stay at their millimetres."""
    path = _folder("brain_t1_t2_pd") / name
    original = nib.load(path)
    raw = read_image(path)
    pixels = torch.from_numpy(raw.array / 127.5 - 1)
    write_image(
        tmp_path / "a.nii", pixels, ImageSpec(raw.size, 1, modality="MR"), {"model": "copy"}, raw.affine
    )
    copy = nib.load(tmp_path / "a.nii")
    assert np.allclose(copy.affine, original.affine, atol=1e-6) and copy.shape == original.shape
    back = np.rint((np.asarray(copy.dataobj[::9, ::9, ::9]) + 1) * 127.5)
    assert (back == np.asarray(original.dataobj)[::9, ::9, ::9]).all()


def test_npz_sets():
    """One small set of 2D slices; masks of the same file are not taken for labels."""
    data = load_images(_folder("seg_minis_2d") / "lung_ct.npz", 96, split=None)
    assert data["all"].pixels.shape == (22, 1, 96, 96) and data["all"].labels is None


@pytest.mark.parametrize(
    "name", ["brain_tumor_slices", "mr_dicom_series", "cardiac_acdc", "seg_minis_2d", "ct_organs"]
)
def test_check_reads_every_kind_of_folder(name):
    """No crash, something usable; copies across splits are found where they are known to be."""
    report = check(_folder(name), progress=False)
    assert report.usable
    if name == "brain_tumor_slices":
        assert any(p.title == "The same image in more than one split" for p in report.problems)


def test_four_contrasts_of_real_gliomas():
    """Four patients have all contrasts, three of them an automatic tumour map; the other five are named."""
    from verisim.errors import DataError

    folder, contrasts = _folder("brain_glioma"), "t1,t1c,t2,flair"
    data = load_images(folder, (26, 40, 40), image=contrasts, split=None, progress=False)
    assert len(data["all"]) == 4 and data["all"].spec.channels == 4 and len(data.skipped) == 5
    assert all("no t1 and no t2" in why for _, why in data.skipped) and data.contrasts == tuple(
        contrasts.split(",")
    )
    assert len(data.window) == 4 and data["all"].pixels.amin() == -1 and data["all"].pixels.amax() > 0.9
    seen = load_images(folder, (26, 40, 40), image=contrasts, mask="seg_auto", split=None, progress=False)[
        "all"
    ]
    assert seen.segmentation.shape == (3, 1, 26, 40, 40) and seen.segmentation.flatten(1).amax(1).min() > 0
    share = seen.segmentation.gt(0).float().mean()
    assert 0.001 < share < 0.1 and set(seen.segmentation.unique().tolist()) <= {0, 1, 2, 3, 4}
    inside = seen.segmentation > 0
    flair = seen.pixels[:, 3:]
    assert flair[inside].mean() > flair[~inside & (flair > -0.9)].mean() + 0.2  # tumours are bright on FLAIR
    with pytest.raises(DataError, match="brats2013-pat0001"):
        load_images(folder, (26, 40, 40), image=contrasts, split=None, on_error="stop", progress=False)
