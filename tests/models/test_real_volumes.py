"""Every way of making volumes learns from real brains (VERISIM_DATA): scans of tumours, and label maps drawn in greys."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from verisim.cli.main import main

ROOT = Path(os.environ.get("VERISIM_DATA") or ".")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (ROOT / "brain_glioma").exists(), reason="VERISIM_DATA holds no brain_glioma"),
]
NETS = {
    "16-A": ["--model.channels=[8,16]", "--model.allow_small_features=true"],
    "16-H": ["--model.channels=[8,16]", "--model.allow_small_features=true"],
    "16-F": ["--model.channels=[8,16]", "--model.allow_small_features=true", "--model.patches=[0.5]"],
    "16-G": ["--model.channels=[8,16]"],
    "16-J": ["--model.channels=[8,16]", "--model.allow_small_features=true"],
}


def _save(folder, volumes):
    """16^3 files of volumes (W, H, D), which all models then read quickly."""
    folder.mkdir()
    for name, volume in volumes:
        small = F.interpolate(torch.from_numpy(volume)[None, None], (16, 16, 16), mode="area")[0, 0]
        nib.save(nib.Nifti1Image(small.numpy(), np.eye(4)), folder / f"{name}.nii.gz")


def _scans():
    for path in sorted((ROOT / "brain_glioma" / "volumes").glob("*_t1c.nii.gz")):
        yield path.name.split(".")[0], nib.load(path).get_fdata(dtype=np.float32)


def _painted():
    """Label maps as images: one grey for each code, different from brain to brain as contrasts are."""
    rng = np.random.default_rng(0)
    for path in sorted((ROOT / "brain_labelmaps").glob("*.nii.gz")):
        codes = np.asarray(nib.load(path).dataobj)
        known, index = np.unique(codes, return_inverse=True)
        greys = np.concatenate([[0], rng.uniform(50, 250, len(known) - 1)]).astype(np.float32)
        yield path.name.split(".")[0], greys[index].reshape(codes.shape)


@pytest.mark.parametrize(("read", "names"), [(_scans, list(NETS)), (_painted, ["16-H"])])
def test_ways_of_making_volumes(read, names, tmp_path, capsys):
    """A few steps of training lower nothing yet, but every number is finite and samples come as marked NIfTI."""
    _save(tmp_path / "brains", read())
    common = ["--variant", "small-3d", "--data.folder", str(tmp_path / "brains"), "--data.size=16x16x16"]
    budget = ["--training.max_steps=3", "--training.max_minutes=0", "--training.batch_size=2"]
    stage = str(tmp_path / "16-J.1")
    if "16-J" in names:
        first = ["--model.channels=[8,16]", "--model.perceptual_weight=0", "--model.adversarial=0"]
        assert main(["train", "16-J.1", "--out", stage, *common, *budget, *first]) == 0
    for name in names:
        run, out = str(tmp_path / name), tmp_path / f"{name}-samples"
        net = [*NETS[name], *(["--model.first_stage", stage] if name == "16-J" else [])]
        train = ["train", name, "--out", run, *common, *budget, *net, "--model.head_channels=8"]
        assert main(train) == 0, (name, capsys.readouterr().err)
        assert main(["sample", run, "-n", "1", "--steps", "2", "--out", str(out)]) == 0, name
        volume = nib.load(out / "sample_0000.nii.gz")
        assert volume.shape == (16, 16, 16) and b"SYNTHETIC" in volume.header["descrip"].tobytes()
        values = np.asarray(volume.dataobj)
        assert np.isfinite(values).all() and values.std() > 0, name
    capsys.readouterr()
