"""Two visits: reading, one grid for all, a known motion undone, what does not fit left out by name."""

import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from verisim.data.visits import Frame, on_one_grid, read_visits
from verisim.errors import DataError
from verisim.phantoms.two_visits import phantom_visits

FRAME = Frame((16, 16, 16), 8.75)


def test_a_known_motion_is_undone():
    """Phantoms of nearly one age, turned and shifted at random: registered, a second visit is close to the first."""
    scans = phantom_visits(2, 24, seed=1, weeks=0.01)
    found = on_one_grid(scans, FRAME)
    assert found.failed == () and found.images.patients == ("subject-0000",) * 2 + ("subject-0001",) * 2
    assert found.images.spec.size == (16, 16, 16) and found.days.tolist() == pytest.approx([0, 0.07] * 2)
    x = found.images.pixels
    for first in (0, 2):
        left = (x[first] - x[first + 1]).square().mean()
        before = (x[first] - found.unregistered[first + 1]).square().mean()
        assert float(left) < 0.35 * float(before)
    own = [r for r in found.registrations if r["same_patient"]]
    assert len(own) == 2 and all(r["correlation"] > max(0.95, r["correlation_by_header"]) for r in own)
    other = [r for r in found.registrations if not r["same_patient"]]
    assert len(other) == 1 and other[0]["correlation"] < min(r["correlation"] for r in own)


def test_what_does_not_fit_is_named_and_left_out():
    """A second visit that shows noise is no second visit; the first one stays."""
    scans = phantom_visits(1, 16, seed=0)
    noise = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    found = on_one_grid([scans[0], replace(scans[1], pixels=noise)], FRAME)
    assert found.failed == ("subject-0000-visit2",) and found.images.names == ("subject-0000-visit1",)
    with pytest.raises(
        DataError, match=r"subject-0000-visit2 is 14 days after a first visit that is not there"
    ):
        on_one_grid(scans[1:], FRAME)


def volume(path, value=1.0):
    array = np.zeros((6, 5, 4), np.float32)
    array[2, 3, 1] = value
    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 4.0, 1.0])), path)


def test_public_names(tmp_path):
    """Patients, visits and days of the public data's files; other contrasts are left alone."""
    for name in ("01_study1_flair", "01_study2_flair", "04_study1_flair", "01_study1_t2w"):
        volume(tmp_path / f"long_patient{name}.nii.gz")
    with pytest.raises(DataError, match=r"no long_demographics\.csv"):
        read_visits(tmp_path)
    table = tmp_path / "long_demographics.csv"
    table.write_text("patient_id,days_between_studies\n1,203\n")
    found = read_visits(tmp_path)
    assert [(s.patient, s.days) for s in found] == [("patient01", 0), ("patient01", 203), ("patient04", 0)]
    assert found[0].pixels.shape == (1, 4, 5, 6)  # (1, D, H, W)
    assert np.allclose(found[0].affine @ [1, 0, 0, 1], [0, 0, 4, 1])  # d goes upwards by 4 mm
    with pytest.raises(DataError, match=r"study1_flare.*Did you mean 'flair'.*Contrasts there: flair, t2w"):
        read_visits(tmp_path, "flare")
    table.write_text("patient_id,days_between_studies\n1,soon\n")
    with pytest.raises(DataError, match="patient 1: 'soon' is no number of days"):
        read_visits(tmp_path)


def test_a_manifest(tmp_path):
    """One way in for everybody's data: image, patient, days."""
    for k in range(3):
        volume(tmp_path / f"{k}.nii.gz", 1.0 + k)
    lines = ["image,patient,days", "0.nii.gz,anna,40", "1.nii.gz,anna,0", "2.nii.gz,ben,0"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    found = read_visits(tmp_path)
    assert [(s.name, s.patient, s.days) for s in found] == [
        ("1.nii.gz", "anna", 0), ("0.nii.gz", "anna", 40), ("2.nii.gz", "ben", 0)]  # fmt: skip
    (tmp_path / "manifest.csv").write_text("\n".join([*lines[:3], "2.nii.gz,ben,-1"]))
    with pytest.raises(DataError, match=r"2\.nii\.gz, column 'days': '-1' is no number of days"):
        read_visits(tmp_path)


@pytest.mark.skipif("VERISIM_DATA" not in os.environ, reason="VERISIM_DATA names no folder of real images")
def test_real_visits_are_read():
    """Three people seen twice, one once; grids and places differ between visits."""
    folder = Path(os.environ["VERISIM_DATA"]) / "brain_ms"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    found = read_visits(folder)
    days = {s.patient: s.days for s in found}
    assert days == {"patient01": 203, "patient03": 671, "patient04": 0, "patient12": 81} and len(found) == 7
    first, second = found[0], found[1]
    assert first.pixels.shape != second.pixels.shape and not np.allclose(first.affine, second.affine)
