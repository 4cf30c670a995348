"""Bad input through the command line: exit code 2, one sentence that says what, where and what to do."""

import csv

import numpy as np
import pytest
from PIL import Image

from verisim.cli.main import main
from verisim.training.checkpoint import load_state, save_state

BUDGET = ["--training.max_steps=2", "--training.batch_size=4", "--data.size=16", "--model.width=8"]


def pictures(folder, n=12, size=(20, 20), **columns):
    """n grey PNGs with a manifest; columns are functions of the index."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with open(folder / "manifest.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["image", *columns])
        for i in range(n):
            Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(folder / f"{i}.png")
            table.writerow([f"{i}.png", *(make(i) for make in columns.values())])
    return folder


def fails(argv, capsys):
    """The one sentence on standard error."""
    assert main([str(a) for a in argv]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return " ".join(err.split())


def train(folder, out, *options):
    return ["train", "X-V-fix", f"--data.folder={folder}", f"--out={out}", *BUDGET, *options]


def test_empty_folder(tmp_path, capsys):
    """Nothing to learn from."""
    (tmp_path / "empty").mkdir()
    assert "no images found" in fails(train(tmp_path / "empty", tmp_path / "run"), capsys)


def test_one_image(tmp_path, capsys):
    """A single image cannot be split."""
    folder = pictures(tmp_path / "one", n=1)
    assert "at least 2" in fails(train(folder, tmp_path / "run"), capsys)


def test_one_class(tmp_path, capsys):
    """Conditioning on a label that never varies is a mistake, not a model."""
    folder = pictures(tmp_path / "x", label=lambda i: "same")
    assert "one class" in fails(train(folder, tmp_path / "run", "--data.label=label"), capsys).lower()


def test_unknown_label_column(tmp_path, capsys):
    """A misspelt column names those there are."""
    folder = pictures(tmp_path / "x", grade=lambda i: i % 2)
    assert "grade" in fails(train(folder, tmp_path / "run", "--data.label=grad"), capsys)


def test_patient_in_two_splits(tmp_path, capsys):
    """Leaking patients is an error, not a warning."""
    split = {"patient": lambda i: "p", "split": lambda i: "train" if i % 2 else "test"}
    text = fails(train(pictures(tmp_path / "x", **split), tmp_path / "run"), capsys)
    assert "patient" in text and "p" in text


def test_truncated_and_hostile_files(tmp_path, capsys):
    """Unreadable files stop a training by name, unless they are to be skipped."""
    folder = pictures(tmp_path / "x")
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:50])
    (folder / "1.png").write_bytes(b"")
    text = fails(train(folder, tmp_path / "run"), capsys)
    assert ("0.png" in text or "1.png" in text) and "--data.on_error skip" in text
    assert main(["data", "check", str(folder)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "'verisim train' stops on them unless --data.on_error skip" in said and "load_images leaves" in said
    )
    assert main(train(folder, tmp_path / "run", "--data.on_error=skip")) == 0


def test_small_images(tmp_path, capsys):
    """Images are not interpolated up unless asked for."""
    folder = pictures(tmp_path / "x", size=(8, 8))
    assert main([str(a) for a in train(folder, tmp_path / "run")]) == 2
    capsys.readouterr()
    assert main(train(folder, tmp_path / "run", "--data.enlarge=true")) == 0


def test_mixed_modes_and_odd_sizes(tmp_path):
    """16-bit, RGB, RGBA and grey images of 30x30 and 33x17 train together."""
    folder = pictures(tmp_path / "x", size=(33, 17))
    Image.fromarray(np.full((30, 30), 4000, np.uint16)).save(folder / "2.png")
    Image.fromarray(np.full((30, 30, 3), 90, np.uint8)).save(folder / "3.png")
    Image.fromarray(np.full((30, 30, 4), 90, np.uint8)).save(folder / "4.png")
    assert main(train(folder, tmp_path / "run", "--data.enlarge=true")) == 0


def test_second_run_in_one_folder(tmp_path, capsys):
    """An existing run is not overwritten."""
    folder = pictures(tmp_path / "x")
    assert main(train(folder, tmp_path / "run")) == 0
    assert "already holds a run" in fails(train(folder, tmp_path / "run"), capsys)


def test_resuming_on_changed_images(tmp_path, capsys):
    """Data that changed since the run began are noticed by their fingerprint."""
    folder = pictures(tmp_path / "x")
    assert main(train(folder, tmp_path / "run")) == 0
    pictures(folder, size=(24, 24))
    assert "have changed" in fails(["train", "--resume", tmp_path / "run"], capsys)


def test_damaged_weights(tmp_path, capsys):
    """Truncated and altered weights are refused; a file of another kind too."""
    folder, run = pictures(tmp_path / "x"), tmp_path / "run"
    assert main(train(folder, run)) == 0
    weights = run / "weights.safetensors"
    whole = weights.read_bytes()
    damaged = bytearray(whole)
    damaged[-3] ^= 4
    sample = ["sample", run, "-n", 1, "--out", tmp_path / "s"]
    weights.write_bytes(damaged)
    assert "SHA-256 does not match" in fails(sample, capsys)
    weights.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in fails(sample, capsys)
    weights.write_bytes(whole)
    state = load_state(weights)
    save_state(weights, state)  # without its card
    assert "not a model exported by verisim" in fails(sample, capsys)


def test_sampling_mistakes(tmp_path, capsys):
    """Impossible numbers, options and classes."""
    folder, run = pictures(tmp_path / "x"), tmp_path / "run"
    assert main(train(folder, run)) == 0
    assert "at least 1" in fails(["sample", run, "-n", 0], capsys)
    assert "guidance" in fails(["sample", run, "--guidance", 2], capsys)
    assert "without classes" in fails(["sample", run, "--class", "0"], capsys)


def test_samples_are_marked_and_read_again(tmp_path, capsys):
    """Each file says that it is synthetic, and the folder is a data set again."""
    from verisim.data.folder import load_images
    from verisim.data.writers import read_provenance

    folder, run = pictures(tmp_path / "x"), tmp_path / "run"
    assert main(train(folder, run)) == 0
    for form, suffix in (("png", ".png"), ("dicom", ".dcm"), ("nifti", ".nii.gz"), ("npz", ".npz")):
        out = tmp_path / form
        assert main(["sample", str(run), "-n", "2", "--out", str(out), "--format", form]) == 0
        facts = read_provenance(out / f"sample_0000{suffix}")
        assert facts["seed"] == 0 and facts["recipe"] == "X-V-fix" and len(facts["weights_sha256"]) == 64
    assert len(load_images(tmp_path / "png", 16, split=None)["all"]) == 2


@pytest.mark.parametrize("steps", ["0", "-1"])
def test_impossible_steps(tmp_path, capsys, steps):
    """A schedule needs at least one step."""
    run = tmp_path / "run"
    tiny = ["--model.channels=[8,16]", "--model.blocks=1", "--model.attention=[false,false]"]
    budget = ["--training.max_steps=1", "--training.batch_size=2", "--data.size=16", "--data.count=20"]
    assert main(["train", "X-D-fix", f"--out={run}", *tiny, *budget]) == 0
    assert "step" in fails(["sample", run, "--steps", steps], capsys)
