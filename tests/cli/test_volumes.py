"""Volumes walk the same path as images: a folder of NIfTI files to a trained model to NIfTI samples."""

import nibabel as nib
import numpy as np
import pytest

from verisim.cli.main import main
from verisim.errors import VerisimError
from verisim.training.run_folder import RunFolder
from verisim.training.source import DataSettings, open_dataset


@pytest.fixture
def folder(tmp_path):
    """Twelve patients with a bright ball each; the manifest calls them all training."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(s) for s in (20, 18, 10)], indexing="ij"))
    root = tmp_path / "volumes"
    root.mkdir()
    rows = ["image,patient,split"]
    for i in range(12):
        centre = np.array([10, 9, 5]) + rng.normal(0, 1, 3)
        inside = np.linalg.norm(grid - centre[:, None, None, None], axis=0) < 4
        volume = (800 * inside + rng.normal(100, 20, inside.shape)).astype(np.float32)
        nib.save(nib.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0])), root / f"v{i}.nii.gz")
        rows.append(f"v{i}.nii.gz,p{i},train")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def test_train_and_sample_volumes(folder, tmp_path, capsys):
    """The run learns D x H x W images, and its samples are NIfTI volumes of that size, marked synthetic."""
    run, out = tmp_path / "run", tmp_path / "samples"
    budget = ["--training.max_steps=2", "--training.batch_size=4", "--training.max_minutes=0"]
    net = ["--model.channels=[8,16]", "--model.head_channels=16", "--model.steps=2"]
    data = [f"--data.folder={folder}", "--data.size=8x16x16", "--data.split=new"]
    assert main(["train", "X-D-fix", "--out", str(run), *data, *budget, *net]) == 0
    assert main(["sample", str(run), "-n", "2", "--out", str(out)]) == 0
    files = sorted(out.glob("*.nii.gz"))
    assert [nib.load(f).shape for f in files] == [(16, 16, 8)] * 2
    assert b"SYNTHETIC" in nib.load(files[0]).header["descrip"].tobytes()
    assert (run / "samples").exists() and (out / "overview.png").exists()
    low, high = RunFolder(run).config()["window"][
        "NIfTI float32"
    ]  # written down, to read other images the same way
    assert low < 100 < 700 < high
    mask = np.zeros((20, 18, 10), np.uint8)
    mask[:10] = 1
    nib.save(nib.Nifti1Image(mask, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "m.nii.gz")
    files = ["--inpaint", str(folder / "v3.nii.gz"), "--mask", str(tmp_path / "m.nii.gz"), "--resamples", "1"]
    assert main(["sample", str(run), "-n", "1", "--out", str(tmp_path / "new"), *files]) == 0
    dataset = open_dataset(DataSettings(folder=str(folder), size="8x16x16", split="new"))
    known = next(x.pixels[x.names.index("v3.nii.gz")] for x in dataset.values() if "v3.nii.gz" in x.names)
    made = np.asarray(nib.load(tmp_path / "new" / "sample_0000.nii.gz").dataobj)  # (W, H, D)
    assert np.allclose(made[8:], known[0].numpy().T[8:], atol=1e-6)
    assert not np.allclose(made[:8], known[0].numpy().T[:8], atol=1e-2)


def test_without_held_out_patients_the_remedy_is_named(folder, tmp_path, capsys):
    """A manifest that calls everything training cannot be judged on; the sentence says what helps."""
    data = [f"--data.folder={folder}", "--data.size=8x16x16"]
    assert main(["evaluate", str(folder), *data]) == 2
    assert "--data.split new" in capsys.readouterr().err


@pytest.mark.parametrize("size, shape", [(64, (64, 64)), ("48x64", (48, 64)), ("32x48x32", (32, 48, 32))])
def test_sizes(size, shape):
    assert DataSettings(size=size).shape == shape


@pytest.mark.parametrize("size", ["4", "32x4", "1x2x3x4", "32,32", "big", "-8", "32.5"])
def test_sizes_that_are_none(size, capsys):
    """Too small, too many axes, or no numbers: one sentence with examples."""
    assert main(["train", "X-D-fix", f"--data.size={size}"]) == 2
    assert "data.size is" in capsys.readouterr().err


def test_phantom_volumes_and_their_people():
    """Phantoms come as volumes too, and two visits of one person are never on both sides of the split."""
    volumes = open_dataset(DataSettings(phantom="brain", count=10, size="16x16x16"))
    assert volumes["train"].spec.size == (16, 16, 16) and len(volumes["test"]) == 2
    visits = open_dataset(DataSettings(phantom="growing_brain", count=30, size=32))
    assert not set(visits["train"].patients or "x") & set(visits["test"].patients or "y")
    with pytest.raises(VerisimError, match="square images"):
        open_dataset(DataSettings(phantom="chest", count=10, size="16x16x16"))
