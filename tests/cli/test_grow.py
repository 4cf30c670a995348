"""`verisim train B-L` and `verisim grow`: from a folder to a brain at other ages, and what is refused."""

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from verisim.cli.main import main
from verisim.data.writers import read_provenance, write_image
from verisim.phantoms import PHANTOMS, growing_brain

FIT = ["--steps", "60", "--lr", "2e-2", "--pixels", "0.5", "--frames", "4"]
AGE, LATER = 31.0, 40.0


def write_folder(path, subjects, ages, size):
    made = growing_brain.scan(subjects, ages, 0, size)
    suffix = ".png" if len(made.images.spec.size) == 2 else ".nii.gz"
    lines = ["image,patient,age,split"]
    for k, (x, who, age) in enumerate(zip(made.images.pixels, made.images.patients, ages.tolist())):
        write_image(path / f"{k:02d}{suffix}", x, made.images.spec, {})
        lines.append(f"{k:02d}{suffix},{who},{age:.3f},{'test' if k < 2 else 'train'}")
    (path / "manifest.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of B-L on a folder of 40 scans of 20 subjects."""
    root = tmp_path_factory.mktemp("grow")
    made = growing_brain.make(40, 0, 16)
    write_folder(root / "scans", made.factors["subject"].long(), made.factors["age"], 16)
    small = [
        "--variant",
        "small",
        "--training.max_steps",
        "300",
        "--model.latent",
        "16",
        "--training.sample_minutes",
        "0",
    ]
    data = ["--data.folder", str(root / "scans"), "--data.size", "16"]
    assert main(["train", "B-L", *small, *data, "--out", str(root / "run")]) == 0
    return root / "run"


def one_scan(path, size=16, age=AGE, subject=200):
    made = growing_brain.scan(torch.tensor([subject]), torch.tensor([age]), 0, size)
    write_image(path, made.images.pixels[0], made.images.spec, {})
    return path


def test_a_scan_grows(run, tmp_path, capsys):
    """Frames, film and curve; the later brain resembles the true later scan more than the scan itself does."""
    scan = one_scan(tmp_path / "baby.png")
    out = tmp_path / "out"
    argv = [
        "grow",
        str(run),
        "--from-age",
        str(AGE),
        "--to-age",
        str(LATER),
        str(scan),
        *FIT,
        "--out",
        str(out),
    ]
    assert main(argv) == 0
    files = sorted(p.name for p in (out / "baby").iterdir())
    assert files[:2] == ["000-age-31.00.png", "001-age-34.00.png"]
    assert files[-4:] == ["curve.csv", "curve.png", "growth.gif", "provenance.json"]
    facts = read_provenance(out / "baby" / "003-age-40.00.png")
    assert facts["synthetic"] is True and facts["age"] == 40 and facts["extrapolated"] is False
    assert facts["recipe"] == "B-L" and facts["scan"] == "baby.png" and len(facts["weights_sha256"]) == 64
    drawn = np.asarray(Image.open(out / "baby" / "003-age-40.00.png")) / 255
    later, first = (
        np.asarray(Image.open(one_scan(tmp_path / f"{a}.png", age=a))) / 255 for a in (LATER, AGE)
    )
    assert ((drawn - later) ** 2).mean() < 0.5 * ((first - later) ** 2).mean()
    rows = list(csv.reader((out / "baby" / "curve.csv").open()))
    assert rows[0][:2] == ["age_weeks", "extrapolated"] and rows[0][2].startswith("head circumference")
    rounds = [float(r[2]) for r in rows[1:]]
    assert rounds == sorted(rounds) and rounds[-1] > 1.1 * rounds[0]
    film = Image.open(out / "baby" / "growth.gif")
    assert film.n_frames == 6 and b"synthetic" in film.info["comment"]  # 4 forwards, 2 back
    assert "EXTRAPOLATED" not in capsys.readouterr().out
    before = {p.name: p.stat().st_mtime_ns for p in (out / "baby").iterdir()}
    assert main(argv) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (out / "baby").iterdir()} == before
    assert "done before" in capsys.readouterr().out
    assert main([*argv, "--seed", "1"]) == 2
    assert "holds results of other settings" in capsys.readouterr().err


def test_ages_beyond_the_trained_are_marked(run, tmp_path, capsys):
    """In the file's name, its provenance, the table and the summary."""
    scan = one_scan(tmp_path / "baby.png")
    argv = [
        "grow",
        str(run),
        "--from-age",
        "40",
        "--to-age",
        "49",
        str(scan),
        *FIT,
        "--force",
        "--out",
        str(tmp_path),
    ]
    assert main(argv) == 0
    assert "EXTRAPOLATED beyond the trained" in capsys.readouterr().out
    last = tmp_path / "baby" / "003-age-49.00-extrapolated.png"
    assert read_provenance(last)["extrapolated"] is True
    rows = list(csv.reader((tmp_path / "baby" / "curve.csv").open()))
    assert [r[1] for r in rows[1:]] == ["False", "False", "True", "True"]
    argv = ["grow", str(run), "--from-age", "49", "--to-age", "40", str(scan), *FIT, "--force"]
    assert main([*argv, "--out", str(tmp_path / "old")]) == 0  # the scan's own age is beyond
    rows = list(csv.reader((tmp_path / "old" / "baby" / "curve.csv").open()))
    assert [r[1] for r in rows[1:]] == ["True", "True", "False", "False"]


def test_a_folder_grows_and_goes_on(run, tmp_path, capsys):
    """Ages from the manifest; a bad scan is named and does not stop the rest; a second call does the missing one."""
    write_folder(tmp_path / "new", torch.tensor([200, 201, 202]), torch.tensor([31.0, 33.0, 39.0]), 16)
    (tmp_path / "new" / "01.png").write_bytes(b"broken")
    argv = ["grow", str(run), str(tmp_path / "new"), "--to-age", "36", *FIT, "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    text = capsys.readouterr().out
    assert "1 of 3 scans could not be done" in text and "01.png" in text
    assert (tmp_path / "out" / "02" / "000-age-39.00.png").exists()  # backwards
    one_scan(tmp_path / "new" / "01.png", age=33.0, subject=201)
    assert main(argv) == 0
    assert capsys.readouterr().out.count("done before") == 2


def chest(path):
    made = PHANTOMS["chest"].make(1, 0, 16).images
    write_image(path, made.pixels[0], made.spec, {})


def turned(path):
    made = growing_brain.scan(torch.tensor([200]), torch.tensor([AGE]), 0, 16).images
    write_image(path, -made.pixels[0], made.spec, {})


def constant(path):
    write_image(path, torch.zeros(1, 16, 16), growing_brain.make(1, 0, 16).images.spec, {})


def small(path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (chest, "another anatomy or contrast"),
        (turned, "another anatomy or contrast"),
        (constant, "the scan is constant"),
        (small, "would have to be enlarged"),
    ],
)
def test_what_cannot_grow(run, tmp_path, capsys, make, message):
    """Another anatomy, inverted contrast, a constant image, too few pixels: one sentence, nothing written."""
    make(tmp_path / "x.png")
    argv = ["grow", str(run), "--from-age", "31", "--to-age", "40", str(tmp_path / "x.png"), *FIT]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    if "another anatomy" in message:  # the number is said; --force draws it all the same, with a warning
        left = re.search(r"leaves (\d+)% of this scan's variance unexplained; up to (\d+)% is allowed", err)
        assert left and int(left[1]) > int(left[2])
        assert main([*argv, "--force", "--out", str(tmp_path / "out")]) == 0
        out = capsys.readouterr().out
        assert (
            f"WARNING: {left[1]}% unexplained is more than the {left[2]}% allowed" in out
            and out.count("\n") == 2
        )


def test_options_that_do_not_fit(run, tmp_path, capsys):
    """No age, no scans, NaN, a volume for a model of slices: one sentence each."""
    scan = str(one_scan(tmp_path / "baby.png"))
    nib.save(nib.Nifti1Image(np.full((16, 16, 1), np.nan, np.float32), np.eye(4)), tmp_path / "nan.nii.gz")
    made = growing_brain.make(1, 0, (16, 16, 16)).images
    write_image(tmp_path / "v.nii.gz", made.pixels[0], made.spec, {})
    common = ["grow", str(run), "--to-age", "40", "--out", str(tmp_path / "out")]
    for argv, message in (
        ([*common, scan], "how old is the subject"),
        (common, "No scans: name files or folders"),
        ([*common, str(tmp_path / "nan.nii.gz"), "--from-age", "31"], "NaN"),
        ([*common, str(tmp_path / "v.nii.gz"), "--from-age", "31"], "a volume of 16 x 16 x 16"),
        ([*common, scan, "--from-age", "-3"], "above 0"),
    ):
        assert main(argv) == 2
        assert message in capsys.readouterr().err


def test_the_average_brain(run, tmp_path):
    """Nobody's brain grows too, from the zero and from the mean latent."""
    for kind in ("zero", "mean"):
        argv = ["grow", str(run), "--average", kind, "--from-age", "28", "--to-age", "43", "--frames", "5"]
        assert main([*argv, "--out", str(tmp_path)]) == 0
        rows = list(csv.reader((tmp_path / f"average-{kind}" / "curve.csv").open()))
        rounds = [float(r[2]) for r in rows[1:]]
        assert rounds == sorted(rounds)
    facts = json.loads((tmp_path / "average-zero" / "provenance.json").read_text())
    assert facts["synthetic"] is True and facts["settings"]["average"] == "zero"


def test_volumes_keep_their_place(tmp_path, capsys):
    """3D on phantoms: NIfTI out on the scan's own affine; another field of view is refused."""
    few = [
        "--training.max_steps",
        "5",
        "--data.count",
        "12",
        "--training.sample_minutes",
        "0",
        "--model.latent",
        "4",
    ]
    run = tmp_path / "run"
    assert main(["train", "B-K", "--variant", "small", *few, "--out", str(run)]) == 0
    made = growing_brain.scan(torch.tensor([200]), torch.tensor([AGE]), 0, (16, 16, 16)).images
    mm = made.spec.spacing[0]
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = (-70, -50, 10)
    write_image(tmp_path / "v.nii.gz", made.pixels[0], made.spec, {}, affine)
    write_image(
        tmp_path / "wide.nii.gz", made.pixels[0], made.spec, {}, affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    )
    common = [
        "--from-age",
        "31",
        "--to-age",
        "40",
        "--steps",
        "2",
        "--frames",
        "2",
        "--force",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["grow", str(run), str(tmp_path / "v.nii.gz"), *common]) == 0
    given = nib.load(tmp_path / "v.nii.gz").affine
    found = nib.load(tmp_path / "out" / "v" / "001-age-40.00.nii.gz")
    assert np.allclose(found.affine, given, atol=1e-4) and found.shape == (16, 16, 16)
    x = made.pixels[0, 0].numpy().T  # (w, h, d)
    hole = x.copy()
    hole[3, 4, 5] = np.nan
    units, thick = (
        affine @ np.diag([1e-3, 1e-3, 1e-3, 1]),
        affine @ np.diag([3.0, 1, 1, 1]),
    )  # metres; thick slices
    for name, array, place in (
        ("four", np.stack([x, x], -1), affine),
        ("hole", hole, affine),
        ("flat", x, np.diag([mm, mm, 0.0, 1.0])),
    ):
        image = nib.Nifti1Image(array, affine)
        image.set_qform(None, code=0)
        image.set_sform(place, code=1)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    for name, place in (("metres", units), ("thick", thick)):
        write_image(tmp_path / f"{name}.nii.gz", made.pixels[0], made.spec, {}, place)
    capsys.readouterr()
    for name, message in (
        (
            "wide",
            "field of view would give voxels of 17.5 x 17.5 x 17.5 mm on the model's grid, which has 8.75 x 8.75",
        ),
        ("four", "has 4 dimensions (16 x 16 x 16 x 2): 2 volumes in one file"),
        ("hole", "1 of 4,096 values are NaN or Inf"),
        ("metres", "voxels of 0.00875 x 0.00875 x 0.00875 mm"),
        ("thick", "voxels of 26.2 x 8.75 x 8.75 mm"),
        ("flat", "its affine is singular"),
    ):
        assert main(["grow", str(run), str(tmp_path / f"{name}.nii.gz"), *common]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
