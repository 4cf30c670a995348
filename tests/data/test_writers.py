"""Writers: pixels, geometry and provenance come back; every file says synthetic; no half file is left."""

import errno
import json
import os

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from verisim.data.folder import load_images
from verisim.data.readers import read_image
from verisim.data.spec import Images, ImageSpec
from verisim.data.writers import read_provenance, write_image, write_samples
from verisim.errors import DataError, RangeError

# right-angled and oblique, as scanners have them: (d, h, w) -> mm RAS+
TURN = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, 0.28, -0.96], [0, 0.96, 0.28]]
)
AFFINE = np.block([[TURN * [2.5, 0.75, 0.5], np.array([[-30.0], [12.5], [99.0]])], [np.zeros((1, 3)), 1]])
MADE_BY = {"model": "ddpm", "seed": 7, "weights": "abc", "settings": {"steps": 20}}


def _levels(spec, bits, seed=0):
    """Random images that `bits` can hold exactly."""
    x = torch.rand(1, *spec.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Images(x, spec).quantise(2**bits).pixels[0]


@pytest.mark.parametrize("size", [(9, 14), (5, 9, 14)])
@pytest.mark.parametrize(("suffix", "bits"), [(".png", 8), (".png", 16), (".dcm", 8), (".dcm", 16), (".nii", 8),
                                              (".nii.gz", 8), (".npz", 8)])  # fmt: skip
def test_round_trip(tmp_path, size, suffix, bits):
    """Pixels to the last level, affine and spacing to 1e-6, provenance whole: for every format, 2D and 3D."""
    if suffix == ".png" and len(size) == 3:
        pytest.skip("PNG holds no volumes; the refusal is tested below")
    spec = ImageSpec(size, 1, spacing=(2.5, 0.75, 0.5)[3 - len(size) :], modality="MR")
    x = _levels(spec, bits)
    write_image(tmp_path / f"a{suffix}", x, spec, MADE_BY, AFFINE, bits=bits)
    raw = read_image(tmp_path / f"a{suffix}")
    low, high = raw.range
    assert np.abs((raw.array - low) / (high - low) * 2 - 1 - x.numpy()).max() < 2e-7
    columns = slice(4 - len(size) - 1, 4)  # a 2D file need not keep the step to a slice that is not there
    assert np.allclose(raw.affine[:, columns], AFFINE[:, columns], atol=1e-5)
    assert raw.spacing == pytest.approx(spec.spacing, abs=1e-6)
    found = read_provenance(tmp_path / f"a{suffix}")
    assert found["synthetic"] is True and {k: found[k] for k in MADE_BY} == MADE_BY
    assert [f.name for f in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".dcm", ".npz"])
def test_colour_round_trip(tmp_path, suffix):
    """Three channels come back in order."""
    spec = ImageSpec((6, 7), 3)
    x = _levels(spec, 8)
    write_image(tmp_path / f"a{suffix}", x, spec, MADE_BY)
    raw = read_image(tmp_path / f"a{suffix}")
    low, high = raw.range
    assert np.abs((raw.array - low) / (high - low) * 2 - 1 - x.numpy()).max() < 2e-7


def test_marks_in_each_format(tmp_path):
    """What other programs see: PNG comment, NIfTI descrip, DICOM SyntheticData and a nobody."""
    spec = ImageSpec((6, 8), 1)
    for name in ("a.png", "a.nii.gz", "a.dcm"):
        write_image(tmp_path / name, _levels(spec, 8), spec, MADE_BY)
    assert "synthetic" in Image.open(tmp_path / "a.png").text["Comment"]
    assert (
        nib.load(tmp_path / "a.nii.gz")
        .header["descrip"]
        .item()
        .startswith(b"SYNTHETIC by verisim; model ddpm")
    )
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    assert ds[0x0008, 0x001C].value == "YES" and ds.ImageType == ["DERIVED", "SECONDARY"]
    assert ds.preamble == b"\0" * 128 and ds.ConversionType == "SYN" and "SYNTHETIC" in str(ds.PatientName)
    assert (
        ds.ContributingEquipmentSequence[0].Manufacturer == "verisim" and "seed 7" in ds.DerivationDescription
    )
    write_image(tmp_path / "b.dcm", _levels(spec, 8), spec, MADE_BY)
    assert pydicom.dcmread(tmp_path / "b.dcm").SOPInstanceUID != ds.SOPInstanceUID


def test_nifti_opens_elsewhere(tmp_path):
    """nibabel alone reads back the same numbers at the same millimetres."""
    spec = ImageSpec((5, 9, 14), 1)
    x = torch.rand(1, 5, 9, 14) * 2 - 1
    write_image(tmp_path / "a.nii.gz", x, spec, MADE_BY, AFFINE)
    image = nib.load(tmp_path / "a.nii.gz")
    assert (np.asarray(image.dataobj)[3, 2, 1] == x[0, 1, 2, 3].numpy()).all()
    assert np.allclose(image.affine @ [3, 2, 1, 1], AFFINE @ [1, 2, 3, 1], atol=1e-4)


def test_refusals(tmp_path):
    """[0, 255] where [-1, 1] is meant, NaN, volumes as PNG, unknown suffix, provenance that is not JSON."""
    spec = ImageSpec((6, 8), 1)
    with pytest.raises(RangeError, match=r"a\.png: values in"):
        write_image(tmp_path / "a.png", torch.full((1, 6, 8), 255.0), spec, {})
    with pytest.raises(RangeError, match="NaN"):
        write_image(tmp_path / "a.png", torch.full((1, 6, 8), torch.nan), spec, {})
    volume = ImageSpec((4, 6, 8), 1)
    with pytest.raises(DataError, match=r"PNG holds 2D.*Write \.nii\.gz"):
        write_image(tmp_path / "a.png", torch.zeros(1, 4, 6, 8), volume, {})
    with pytest.raises(DataError, match=r"cannot write '\.bmp'. Known: \.png"):
        write_image(tmp_path / "a.bmp", torch.zeros(1, 6, 8), spec, {})
    with pytest.raises(DataError, match="provenance must be JSON"):
        write_image(tmp_path / "a.png", torch.zeros(1, 6, 8), spec, {"net": object()})
    with pytest.raises(DataError, match="3 channels"):
        write_image(tmp_path / "a.nii", torch.zeros(3, 6, 8), ImageSpec((6, 8), 3), {})
    with pytest.raises(DataError, match="sheared within the slice"):
        shear = np.array([[1, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        write_image(tmp_path / "a.dcm", torch.zeros(1, 6, 8), spec, {}, shear)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "text"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written to"),
                                              (errno.EIO, "could not be written")])  # fmt: skip
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, number, text):
    """When fsync fails, the earlier file is untouched and no temporary file remains."""
    spec = ImageSpec((6, 8), 1)
    write_image(tmp_path / "a.png", torch.zeros(1, 6, 8), spec, MADE_BY)
    before = (tmp_path / "a.png").read_bytes()

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match=text):
        write_image(tmp_path / "a.png", torch.ones(1, 6, 8), spec, MADE_BY)
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("size", "suffix"), [((16, 12), None), ((16, 12), ".dcm"), ((4, 6, 8), None), ((16, 12), ".npz")]
)
def test_samples_are_a_folder_again(tmp_path, size, suffix):
    """write_samples -> load_images gives the same pixels, labels and class names."""
    spec = ImageSpec(size, 1)
    images = Images(torch.stack([_levels(spec, 8, i) for i in range(4)]), spec, torch.tensor([0, 1, 1, 0]))
    paths = write_samples(tmp_path / "out", images, MADE_BY, suffix=suffix, class_names=("no", "yes"))
    data = load_images(tmp_path / "out", size, label="label", split=None)
    assert torch.allclose(data["all"].pixels, images.pixels, atol=3e-7)
    assert data.class_names == ("no", "yes") and data["all"].labels.tolist() == [0, 1, 1, 0]
    assert read_provenance(paths[2])["index"] == 2 and read_provenance(paths[2])["label"] == "yes"
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["images"] == 4
    with pytest.raises(DataError, match=r"holds a manifest\.csv already"):
        write_samples(tmp_path / "out", images, MADE_BY, suffix=suffix)


def test_real_files_have_no_provenance(tmp_path):
    """A file of another program is not taken for one of ours."""
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="carries no provenance"):
        read_provenance(tmp_path / "a.png")


def test_parts_of_a_set_share_a_manifest(tmp_path):
    """Two parts in either order give the files and manifest of the whole; another set is refused before it is written."""
    images = Images(torch.linspace(-1, 1, 6 * 16).view(6, 1, 4, 4), ImageSpec((4, 4)), torch.arange(6) % 2)
    write_samples(tmp_path / "whole", images, MADE_BY)
    for part in ([1, 3, 5], [0, 2, 4], [0, 2, 4]):  # the last one again: a part may be repeated
        write_samples(tmp_path / "parts", images.subset(torch.tensor(part)), MADE_BY, places=part, total=6)
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted({*names, ".lock"})
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    before = (tmp_path / "parts" / "sample_0000.png").read_bytes()
    other = {**MADE_BY, "seed": 99}
    with pytest.raises(DataError, match=r"made in another way"):
        write_samples(tmp_path / "parts", images.subset(torch.tensor([0])), other, places=[0], total=6)
    assert (tmp_path / "parts" / "sample_0000.png").read_bytes() == before
