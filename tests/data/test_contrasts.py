"""Several files of one patient become the channels of one image, each with its own black and white."""

import numpy as np
import pytest
import torch
from hostile import manifest, nifti, noise, png

from verisim.data.folder import load_file, load_images
from verisim.data.mosaic import mosaic
from verisim.errors import DataError

NAMES = ("t1", "t2", "flair")


def patients(folder, n=4, spoil=None):
    """n patients with three contrasts of very different brightness; spoil = (array, affine) of the second's t2."""
    rows = []
    for i in range(n):
        row = {"patient": f"p{i}"}
        for k, name in enumerate(NAMES):
            array, affine = volume(i, k), np.eye(4)
            if spoil and (i, name) == (1, "t2"):
                array, affine = spoil
            nifti(folder / f"p{i}_{name}.nii.gz", array, affine)
            row[name] = f"p{i}_{name}.nii.gz"
        rows.append(row)
    manifest(folder, rows)
    return rows


def volume(patient, k):
    return noise(10 * patient + k, (12, 10, 8)).astype(np.float32) * 10.0**k + 7


def test_channels_are_the_contrasts_in_the_order_given(tmp_path):
    """Each channel equals the set read from its column alone, with that column's own black and white."""
    patients(tmp_path)
    data = load_images(tmp_path, (8, 10, 12), image="t1, t2,flair", split=None)
    assert data["all"].spec.channels == 3 and data.contrasts == NAMES
    for k, name in enumerate(NAMES):
        alone = load_images(tmp_path, (8, 10, 12), image=name, split=None)
        assert torch.equal(data["all"].pixels[:, k : k + 1], alone["all"].pixels) and alone.contrasts == ()
        assert data.window[f"{name}: NIfTI float32"] == alone.window["NIfTI float32"]
        assert alone.fingerprint != data.fingerprint
    turned = load_images(tmp_path, (8, 10, 12), image="flair,t1", split=None)["all"]
    assert torch.equal(turned.pixels, data["all"].pixels[:, [2, 0]])
    assert data["all"].names == tuple(f"p{i}_t1.nii.gz" for i in range(4))
    assert not any("several kinds" in n for n in data.notes)


def test_eight_bit_contrasts(tmp_path):
    """PNG contrasts map by their type: v / 127.5 - 1 in every channel; colour becomes grey."""
    rows = []
    for i in range(3):
        png(tmp_path / f"a{i}.png", noise(i, (16, 16)))
        png(tmp_path / f"b{i}.png", noise(50 + i, (16, 16, 3)))
        rows.append({"a": f"a{i}.png", "b": f"b{i}.png"})
    manifest(tmp_path, rows)
    x = load_images(tmp_path, 16, image="a,b", split=None)["all"].pixels
    assert torch.allclose(x[1, 0], torch.from_numpy(noise(1, (16, 16)) / 127.5 - 1).float(), atol=1e-6)
    luma = noise(51, (16, 16, 3)) @ np.array([0.299, 0.587, 0.114]) / 127.5 - 1
    assert np.allclose(x[1, 1], luma, atol=1e-5)
    with pytest.raises(
        DataError, match="channels=3 with the contrasts a, b: each contrast is one grey channel"
    ):
        load_images(tmp_path, 16, image="a,b", channels=3, split=None)


def test_a_column_whose_name_has_a_comma_is_itself(tmp_path):
    """Reading 'a,b' where the manifest has such a column means that column."""
    for i in range(2):
        png(tmp_path / f"{i}.png", noise(i, (16, 16)))
    (tmp_path / "manifest.csv").write_text('"a,b"\n0.png\n1.png\n')
    assert load_images(tmp_path, 16, image="a,b", split=None)["all"].spec.channels == 1


def test_other_grids_are_refused_with_both_numbers(tmp_path):
    """Shape first, then place."""
    patients(tmp_path, spoil=(volume(1, 1)[:-1], np.eye(4)))
    with pytest.raises(
        DataError, match=r"p1_t2.nii.gz has 8 x 10 x 11 pixels where p1_t1.nii.gz has 8 x 10 x 12"
    ):
        load_images(tmp_path, (8, 8, 8), image="t1,t2,flair", split=None, on_error="stop")
    moved = np.eye(4)
    moved[2, 3] = 5
    patients(tmp_path, spoil=(volume(1, 1), moved))
    with pytest.raises(
        DataError, match=r"p1_t2.nii.gz lies up to 5 mm away from p1_t1.nii.gz: their affines"
    ):
        load_images(tmp_path, (8, 8, 8), image="t1,t2,flair", split=None, on_error="stop")
    kept = load_images(tmp_path, (8, 8, 8), image="t1,t2,flair", split=None)
    assert len(kept["all"]) == 3 and kept.skipped[0][0] == "p1_t1.nii.gz"
    assert len(load_images(tmp_path, (8, 8, 8), image="t1,flair", split=None, on_error="stop")["all"]) == 4


def test_missing_contrasts_are_named(tmp_path):
    """Empty cells name patient and contrast; a patient with none of them is not meant; a wrong column is named."""
    rows = patients(tmp_path)
    rows[2]["t2"] = rows[2]["flair"] = ""
    rows.append({"patient": "only-ct", "t1": "", "t2": "", "flair": ""})
    manifest(tmp_path, rows)
    with pytest.raises(DataError, match=r"unreadable: p2. p2: row 4 of the manifest has no t2 and no flair"):
        load_images(tmp_path, (8, 8, 8), image="t1,t2,flair", split=None, on_error="stop")
    data = load_images(tmp_path, (8, 8, 8), image="t1,t2,flair", split=None)
    assert data["all"].patients == ("p0", "p1", "p3")
    with pytest.raises(DataError, match=r"no column 'fair'. Did you mean 'flair'"):
        load_images(tmp_path, (8, 8, 8), image="t1,fair")
    with pytest.raises(DataError, match="name each contrast's column once"):
        load_images(tmp_path, (8, 8, 8), image="t1,t1")
    (tmp_path / "p0_flair.nii.gz").unlink()
    with pytest.raises(DataError, match=r"2 file\(s\) missing or unreadable: p0_flair.nii.gz, p2"):
        load_images(tmp_path, (8, 8, 8), image="t1,t2,flair", split=None, on_error="stop")
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(DataError, match=r"image='t1,t2' names columns of a manifest.csv, and there is none"):
        load_images(tmp_path, (8, 8, 8), image="t1,t2")


def test_one_patient_read_like_the_set(tmp_path):
    """load_file with a file per contrast gives the set's own pixels; another number of files is refused."""
    patients(tmp_path)
    data = load_images(tmp_path, (4, 5, 6), image="t1,t2,flair", split=None)
    pixels, affine = load_file([tmp_path / f"p2_{name}.nii.gz" for name in NAMES], data)
    assert torch.equal(pixels, data["all"].pixels[2]) and np.allclose(affine, data.affines["all"][2])
    with pytest.raises(DataError, match=r"1 file\(s\) given where an image has the contrasts t1, t2, flair"):
        load_file(tmp_path / "p2_t1.nii.gz", data)


def test_pictures_of_contrasts():
    """Two or four channels stand side by side, in order; one is grey and three are colour."""
    x = torch.stack([torch.full((8, 8), v) for v in (-1.0, 1.0, 0.0, 0.5)])[None]  # (1, 4, 8, 8)
    grey = np.asarray(mosaic(x))[0, ::8]
    assert grey[:, 0].tolist() == [0, 255, 128, 191] and (grey[:, 0] == grey[:, 2]).all()
    assert np.asarray(mosaic(x[:, :2])).shape == (8, 16, 3)
    assert np.asarray(mosaic(x[:, :1])).shape == np.asarray(mosaic(x[:, :3])).shape == (8, 8, 3)
    assert np.asarray(mosaic(x[:, :3]))[0, 0].tolist() == [0, 255, 128]
    volumes = torch.stack([x, x], 2)  # (1, 4, 2, 8, 8)
    assert np.asarray(mosaic(volumes)).shape == (8, 32, 3)
