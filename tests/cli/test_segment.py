"""`verisim segment`: from a trained run and a user's files to masks on the files' own grids; and what it refuses."""

import json

import nibabel as nib
import numpy as np
import pytest

from verisim.cli.main import main
from verisim.data.cases import find_cases
from verisim.errors import DataError

SIZE = (14, 12, 10)  # of the files, (x, y, z); the model's grid is 8 x 12 x 16 (d, h, w)
AFFINE = np.array([[2.0, 0, 0, -7], [0, 2.5, 0, 3], [0, 0, 3.0, 11], [0, 0, 0, 1]])


def save(path, volume, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)


def case(folder, name, seed=0, affine=AFFINE, size=SIZE, contrasts=("t1", "flair"), dtype=np.float32):
    """A bright box in noise, in two contrasts, with its label map (code 4)."""
    rng = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    label[4:9, 3:8, 3:7] = 4
    for c in contrasts:
        save(
            folder / f"{name}_{c}.nii.gz",
            (500 * (label > 0) + rng.normal(200, 40, size)).astype(dtype),
            affine,
        )
    save(folder / f"{name}_seg.nii.gz", label, affine)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A supervised segmenter trained for seconds on a folder of NIfTI cases with a manifest."""
    root = tmp_path_factory.mktemp("segment")
    rows = ["patient,split,t1,flair,seg"]
    for i in range(8):
        case(root / "data", f"p{i}", i)
        rows.append(f"p{i},{'test' if i > 5 else 'train'},p{i}_t1.nii.gz,p{i}_flair.nii.gz,p{i}_seg.nii.gz")
    (root / "data" / "manifest.csv").write_text("\n".join(rows) + "\n")
    data = [
        f"--data.folder={root / 'data'}",
        "--data.image=t1,flair",
        "--data.mask=seg",
        "--data.size=8x12x16",
    ]
    data += [
        "--data.fit=stretch",
        "--data.enlarge=true",
        "--training.max_steps=40",
        "--training.batch_size=3",
    ]
    small = ["--model.channels=[4,8,8]", "--model.lr=0.01", "--training.ema=0.5"]
    assert main(["train", "B-J", "--out", str(root / "run"), *data, *small]) == 0
    return root / "run"


def test_masks_on_the_files_own_grid(run, tmp_path, capsys):
    """Affine and orientation are the file's; the box is found; Dice against the label map; a second run does nothing."""
    case(tmp_path / "new", "case7", 50)
    command = ["segment", str(run), str(tmp_path / "new"), "--truth", "seg", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    first = capsys.readouterr().out
    for kind in ("mask", "mean", "variance"):
        image = nib.load(tmp_path / "out" / f"case7.{kind}.nii.gz")
        assert image.shape == SIZE and np.allclose(image.affine, AFFINE), kind
    mask = np.asarray(nib.load(tmp_path / "out" / "case7.mask.nii.gz").dataobj)
    truth = np.asarray(nib.load(tmp_path / "new" / "case7_seg.nii.gz").dataobj) > 0
    assert set(np.unique(mask)) <= {0, 1} and mask.dtype == np.uint8
    overlap = 2 * (mask[truth].sum()) / (mask.sum() + truth.sum())
    row = json.loads((tmp_path / "out" / "case7.json").read_text())
    assert overlap > 0.6 and row["dice"] == pytest.approx(overlap) and row["hd95"] < 10
    assert row["volume_ml"] == pytest.approx(mask.sum() * 15 / 1000)  # 2 x 2.5 x 3 mm
    assert (tmp_path / "out" / "case7.png").exists() and "Dice" in first and "done before" not in first
    stamp = (tmp_path / "out" / "case7.mask.nii.gz").stat().st_mtime_ns
    assert main(command) == 0 and "done before" in capsys.readouterr().out
    assert (tmp_path / "out" / "case7.mask.nii.gz").stat().st_mtime_ns == stamp
    case(tmp_path / "new", "case7", 51)  # other images under the same name are done again
    assert main(command) == 0 and "done before" not in capsys.readouterr().out


def test_held_out_images(run, tmp_path, capsys):
    """Without cases: scores of the test patients with intervals and calibration."""
    assert main(["segment", str(run), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "held_out.json").read_text())
    assert found["cases"] == 2 and found["dice"]["value"] > 0.6 and "AUROC" in capsys.readouterr().out
    assert sum(found["calibration"]["pixels"]) == 2 * 8 * 12 * 16


def refused(run, folder, capsys, *options):
    """The one sentence with which the command refuses."""
    assert main(["segment", str(run), str(folder), "--out", str(folder / "out"), *options]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "options", "sentence"),
    [
        (lambda f: (f / "a_flair.nii.gz").unlink(), (), "case 'a' has no file for flair"),
        (lambda f: case(f, "a", size=(12, 12, 10), contrasts=("flair",)), (), "12 pixels where .* 14"),
        (lambda f: case(f, "a", affine=AFFINE + np.eye(4, k=3) * 9, contrasts=("flair",)), (), "mm away"),
        (lambda f: None, ("--contrasts", "flair,t1"), "another order than in training: t1,flair"),
        (lambda f: None, ("--contrasts", "t1"), "names 1 where the model was trained on t1,flair"),
        (
            lambda f: save(f / "a_t1.nii.gz", np.zeros(SIZE, np.float32)),
            (),
            r"a_t1.*same brightness everywhere",
        ),
        (lambda f: save(f / "a_t1.nii.gz", np.zeros((*SIZE, 3), np.float32)), (), "4 dimensions"),
        (lambda f: save(f / "a_t1.nii.gz", np.full(SIZE, np.nan, np.float32)), (), "NaN"),
        (lambda f: case(f, "a", size=(5, 5, 5)), ("--data.enlarge=false",), "would have to be enlarged"),
        (lambda f: case(f, "a", affine=np.diag([-2.0, 2.5, 3, 1])), (), "lies .* in space"),
        (
            lambda f: None,
            ("--truth", "seg", "--codes", "1,2"),
            r"holds 4; known are 0 \(background\) and 1, 2",
        ),
        (lambda f: None, ("--codes", "tumour"), "numbers from 1 to 255"),
    ],
    ids=[
        "missing",
        "sizes",
        "affines",
        "order",
        "number",
        "empty",
        "4d",
        "nan",
        "small",
        "turned",
        "codes",
        "words",
    ],
)
def test_bad_cases(run, tmp_path, capsys, spoil, options, sentence):
    """What, where, allowed, remedy; nothing is written."""
    import re

    folder = tmp_path / "bad"
    case(folder, "a", 3)
    spoil(folder)
    err = refused(run, folder, capsys, *options)
    assert re.search(sentence, err), err
    assert not list((folder / "out").glob("*.nii.gz")) and "Traceback" not in err


def test_another_model_is_refused(tmp_path, capsys):
    """A model that makes images segments nothing."""
    from verisim.data.spec import ImageSpec
    from verisim.hub.weights import ModelCard, save_model
    from verisim.models import build_model

    settings = {"width": 8, "max_width": 16, "latent": 8}
    save_model(
        tmp_path / "w",
        build_model("conv_vae", settings, ImageSpec((16, 16))),
        ModelCard("conv_vae", settings, ImageSpec((16, 16))),
    )
    assert main(["segment", str(tmp_path / "w")]) == 2
    assert "segments nothing" in capsys.readouterr().err


def test_a_weights_file_alone(run, tmp_path, capsys):
    """Without the run folder the contrasts and, for float files, black and white must be given."""
    case(tmp_path / "new", "case7", 50)
    command = [
        "segment",
        str(run / "weights.safetensors"),
        str(tmp_path / "new"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 2 and "--contrasts t1,t2" in capsys.readouterr().err
    command += ["--contrasts", "t1,flair", "--data.fit=stretch", "--data.enlarge=true"]
    assert main(command) == 2 and "black and white is not known" in capsys.readouterr().err
    assert main([*command, "--data.low=100", "--data.high=800"]) == 0
    assert nib.load(tmp_path / "out" / "case7.mask.nii.gz").shape == SIZE


def test_find_cases(tmp_path):
    """By folder, by prefix, by the layout of the source; twice the same contrast and no case at all are refused."""
    for name in (
        "x/t1.nii",
        "x/flair.nii",
        "y_t1_old.nii",
        "y_flair_old.nii",
        "brats_train_001_t1_000_w.nii",
        "brats_train_001_flair_000_w.nii",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_cases(tmp_path, ("T1", "FLAIR"))
    assert [c.name for c in found] == ["brats_train_001_000_w", "x", "y_old"]
    assert [p.name for p in found[1].images] == ["t1.nii", "flair.nii"]
    (tmp_path / "x" / "t1.nii.gz").touch()
    with pytest.raises(DataError, match="2 files for 't1'"):
        find_cases(tmp_path, ("t1", "flair"))
    with pytest.raises(DataError, match=r"no case found.*case7_t2\.nii\.gz"):
        find_cases(tmp_path, ("t2", "pd"))
    with pytest.raises(DataError, match="no such file"):
        find_cases(tmp_path / "z", ())
