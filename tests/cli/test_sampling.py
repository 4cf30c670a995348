"""`verisim sample`: filling in a part of an image, previews, several contrasts, and too little memory."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from verisim.cli.main import main
from verisim.data.folder import load_images
from verisim.data.spec import ImageSpec
from verisim.data.writers import read_provenance
from verisim.diffusion.stepping import Step
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, save_model
from verisim.models import build_model
from verisim.models.base import GenerativeModel
from verisim.tasks.memory import memory_explained
from verisim.tasks.preview import Preview, usual_interval
from verisim.training.run_folder import RunFolder

NET = {"channels": (8, 8), "blocks": 1, "attention": (False, False), "steps": 3}


def run_folder(folder, size=(16, 16), channels=1, model="diffusion", settings=NET, classes=(), **config):
    """A run folder with an untrained model and a configuration."""
    spec = ImageSpec(size, channels)
    torch.manual_seed(0)
    made = build_model(model, settings, spec, len(classes))
    save_model(
        folder / "weights.safetensors", made, ModelCard(model, dict(settings), spec, len(classes), classes)
    )
    RunFolder(folder).create({"data": {"folder": ""}, "window": {}, **config})
    return folder


def picture(path, array):
    Image.fromarray(array).save(path)
    return path


def noise(seed, size=(16, 16)):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def half(size=(16, 16)):
    """White on the left half."""
    mask = np.zeros(size, np.uint8)
    mask[:, : size[1] // 2] = 255
    return mask


def sample(*words):
    return main(["sample", *(str(w) for w in words)])


def fails(capsys, *words):
    """The one sentence on standard error."""
    assert sample(*words) == 2
    return " ".join(capsys.readouterr().err.split())


def test_known_pixels_come_back(tmp_path):
    """Every known grey level is the given one exactly, the rest is new and differs between samples; a border works too."""
    run = run_folder(tmp_path / "run")
    image = noise(1)
    border = np.full((16, 16), 255, np.uint8)
    border[4:12, 4:12] = 0
    for name, mask in (("in", half()), ("out", border)):
        files = [
            "--inpaint",
            picture(tmp_path / "i.png", image),
            "--mask",
            picture(tmp_path / f"{name}.png", mask),
        ]
        out = tmp_path / f"made-{name}"
        assert sample(run, "-n", 3, "--out", out, "--resamples", 2, "--batch", 2, *files) == 0
        made = [np.asarray(Image.open(f)) for f in sorted(out.glob("sample_*.png"))]
        assert len(made) == 3 and all((m[mask == 0] == image[mask == 0]).all() for m in made)
        assert all((m[mask > 0] != image[mask > 0]).mean() > 0.5 for m in made)
        assert (made[0][mask > 0] != made[1][mask > 0]).any() and (made[0] != made[2]).any()
        facts = read_provenance(out / "sample_0000.png")
        assert facts["synthetic"] and facts["part_real"] and facts["resamples"] == 2
        assert facts["share_made"] == pytest.approx((mask > 0).mean(), abs=1e-4)
        assert len(facts["inpainted_sha256"]) == 2 and "i.png" not in json.dumps(facts)
        again = tmp_path / f"again-{name}"
        assert sample(run, "-n", 3, "--out", again, "--resamples", 2, "--batch", 2, *files) == 0
        assert (np.asarray(Image.open(again / "sample_0001.png")) == made[1]).all()


def test_a_volume_keeps_its_place_and_range(tmp_path):
    """Black and white are those that the run wrote down; the affine comes out as it went in."""
    run = run_folder(tmp_path / "run", (8, 8, 8), window={"NIfTI float32": [0.0, 100.0]})
    affine = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    volume = np.random.default_rng(0).uniform(0, 100, (8, 8, 8)).astype(np.float32)
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "v.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "m.nii.gz")
    files = ["--inpaint", tmp_path / "v.nii.gz", "--mask", tmp_path / "m.nii.gz"]
    assert sample(run, "-n", 1, "--out", tmp_path / "made", "--resamples", 1, *files) == 0
    made = nib.load(tmp_path / "made" / "sample_0000.nii.gz")
    assert np.allclose(made.affine, affine) and b"SYNTHETIC" in made.header["descrip"].tobytes()
    assert np.allclose(np.asarray(made.dataobj)[mask == 0], volume[mask == 0] / 50 - 1, atol=1e-5)


def test_masks_that_leave_no_task(tmp_path, capsys):
    """Everything, nothing, another size, grey borders, lost by resizing, a lone option: one sentence each."""
    run = run_folder(tmp_path / "run")
    base = [run, "-n", 1, "--out", tmp_path / "out", "--inpaint", picture(tmp_path / "i.png", noise(0))]

    def said(mask):
        return fails(capsys, *base, "--mask", picture(tmp_path / "m.png", mask))

    assert "m.png: the mask covers everything, so nothing is known. Leave --inpaint out" in said(
        half() * 0 + 255
    )
    assert "m.png: the mask covers nothing (all black). Paint white" in said(half() * 0)
    assert "has 16 x 12 pixels where" in said(half((16, 12))) and not (tmp_path / "out").exists()
    assert "the mask holds 4 different values; draw it in two" in said(
        half() // 2 + np.eye(16, dtype=np.uint8) * 9
    )
    assert "--inpaint and --mask go together" in fails(capsys, *base)
    assert "--inpaint and --mask go together" in fails(capsys, run, "--mask", tmp_path / "m.png")
    dot = np.zeros((48, 48), np.uint8)
    dot[0, 0] = 255
    base[-1] = picture(tmp_path / "large.png", noise(0, (48, 48)))
    assert "nothing of the mask is left at the model's 16 x 16 pixels" in said(dot)
    base[-1] = picture(tmp_path / "wide.png", noise(0, (16, 32)))  # padded to a square: padding is not known
    assert "the mask covers everything" in said(np.full((16, 32), 255, np.uint8))


def test_images_and_models_that_do_not_fit(tmp_path, capsys):
    """Unknown black and white, a missing file, another number of contrasts, a model that is no diffusion."""
    run = run_folder(tmp_path / "run")
    deep = picture(tmp_path / "deep.png", noise(0).astype(np.uint16) * 200)
    mask = ["--mask", picture(tmp_path / "m.png", half())]
    assert "which of its values are black and white is not known" in fails(
        capsys, run, "--inpaint", deep, *mask
    )
    assert "no such file" in fails(capsys, run, "--inpaint", tmp_path / "none.png", *mask)
    plain = picture(tmp_path / "i.png", noise(0))
    assert "2 file(s) given where an image has one file" in fails(
        capsys, run, "--inpaint", f"{plain},{plain}", *mask
    )
    small = {"width": 8, "max_width": 8, "latent": 4}
    vae = run_folder(tmp_path / "vae", model="conv_vae", settings=small)
    assert "draws whole images only" in fails(capsys, vae, "--inpaint", plain, *mask)
    assert "nothing to preview" in fails(capsys, vae, "--preview", 0, "--out", tmp_path / "x")


def test_older_runs_read_their_images_again(tmp_path):
    """A configuration without 'window' takes black and white from the images that the run was trained on."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        picture(folder / f"{i}.png", noise(i).astype(np.uint16) * 100 + 50)
    run = run_folder(tmp_path / "run", data={"folder": str(folder), "size": 16, "split": "new"})
    config = RunFolder(run).config()
    del config["window"]
    (run / "config.yaml").write_text(json.dumps(config))
    mask = picture(tmp_path / "m.png", half())
    out = tmp_path / "made"
    assert (
        sample(run, "-n", 1, "--out", out, "--inpaint", folder / "0.png", "--mask", mask, "--format", "npz")
        == 0
    )
    dataset = load_images(folder, 16, split="new")
    want = next(x.pixels[x.names.index("0.png")] for x in dataset.values() if "0.png" in x.names)
    found = np.load(out / "sample_0000.npz")["image"]
    assert np.array_equal(found[..., 8:], want.numpy()[..., 8:])


def test_several_contrasts_in_and_out(tmp_path):
    """A two-contrast run writes a file per contrast, reads them again, and fills in both."""
    run = run_folder(tmp_path / "run", channels=2, data={"phantom": "brain", "contrasts": "T1,FLAIR"})
    out = tmp_path / "made"
    assert sample(run, "-n", 2, "--out", out) == 0 and (out / "overview.png").exists()
    rows = list(csv.DictReader((out / "manifest.csv").open()))
    assert rows[1]["T1"] == "sample_0001_T1.png" and rows[1]["FLAIR"] == "sample_0001_FLAIR.png"
    back = load_images(out, 16, image="T1,FLAIR", split=None)["all"]
    assert (
        back.spec.channels == 2 and len(back) == 2 and not torch.equal(back.pixels[:, 0], back.pixels[:, 1])
    )
    files = f"{out / 'sample_0000_T1.png'},{out / 'sample_0000_FLAIR.png'}"
    mask = picture(tmp_path / "m.png", half())
    new = tmp_path / "new"
    assert sample(run, "-n", 1, "--out", new, "--resamples", 1, "--inpaint", files, "--mask", mask) == 0
    again = load_images(new, 16, image="T1,FLAIR", split=None, minimum=1)["all"]
    assert torch.equal(again.pixels[0, :, :, 8:], back.pixels[0, :, :, 8:])
    assert not torch.equal(again.pixels[0, :, :, :8], back.pixels[0, :, :, :8])


def test_training_on_contrasts_with_masks(tmp_path, capsys):
    """Two channels and a mask walk from the options to weights, pictures while training, and samples."""
    run, out = tmp_path / "run", tmp_path / "out"
    data = [
        "--data.phantom=brain",
        "--data.count=10",
        "--data.size=16",
        "--data.contrasts=T1,FLAIR",
        "--data.mask=lesion",
    ]
    budget = ["--training.max_steps=1", "--training.batch_size=2", "--training.max_minutes=0"]
    net = ["--model.channels=[8,16]", "--model.head_channels=16", "--model.steps=2"]
    assert main(["train", "X-D-fix", "--out", str(run), *data, *budget, *net]) == 0
    assert RunFolder(run).config()["data"]["mask"] == "lesion" and list((run / "samples").glob("*.png"))
    assert sample(run, "-n", 1, "--out", out) == 0
    assert {f.name for f in out.glob("sample_*")} == {"sample_0000_T1.png", "sample_0000_FLAIR.png"}


def test_preview_grows_and_ends_with_the_samples(tmp_path):
    """One row of estimates per interval, replaced whole; samples are those without a preview."""
    run = run_folder(tmp_path / "run")
    assert sample(run, "-n", 2, "--out", tmp_path / "a", "--preview", 1) == 0
    assert sample(run, "-n", 2, "--out", tmp_path / "b") == 0
    sheet = Image.open(tmp_path / "a" / "preview.png")
    assert sheet.size == ((2 * 17 - 1) * 4, (3 * 17 - 1) * 4)  # two images, three steps, enlarged four times
    for name in ("sample_0000.png", "sample_0001.png"):
        assert (
            np.asarray(Image.open(tmp_path / "a" / name)) == np.asarray(Image.open(tmp_path / "b" / name))
        ).all()
    last = np.asarray(sheet)[34 * 4 : 50 * 4 : 4, : 16 * 4 : 4, 0].astype(int)
    assert abs(last - np.asarray(Image.open(tmp_path / "a" / "sample_0000.png"))).max() <= 1
    assert not list((tmp_path / "a").glob(".*tmp"))


def test_rows_of_a_preview(tmp_path):
    """Every k-th step once, however often RePaint walks it; a new batch begins anew; at most eight images."""
    look = Preview(tmp_path / "p.png", 2)
    sizes = []
    for i in (0, 0, 1, 2, 2, 3, 4, 0, 1):
        look(Step(i, 1.0, torch.zeros(9, 1, 16, 16), torch.zeros(9, 1, 16, 16)))
        sizes.append((len(look.rows), Image.open(look.path).size))
    assert [n for n, _ in sizes] == [1, 1, 1, 2, 2, 2, 3, 1, 1]
    assert sizes[6][1] == ((8 * 17 - 1) * 4, (3 * 17 - 1) * 4)
    assert [usual_interval(n) for n in (1, 10, 18, 1000)] == [1, 1, 2, 100]


class Greedy(GenerativeModel):
    family = "toy"

    def __init__(self, error, batch=None):
        super().__init__(ImageSpec((64, 64)))
        self.error = error
        if batch:
            self.options = build_model("diffusion", NET, ImageSpec((16, 16))).options.__class__(batch=batch)


def test_out_of_memory_says_what_was_asked_for():
    """A real failed allocation of the CPU, and the text of a GPU's."""
    with pytest.raises(
        VerisimError, match=r"Sampling 7 image\(s\) of 1x64x64 at a time .* \(4096 TiB more were asked for\)"
    ):
        with memory_explained(Greedy(None, batch=7), 100):
            torch.empty(2**50, dtype=torch.float32)
    gpu = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79 GiB"
    )
    with pytest.raises(
        VerisimError, match=r"20.5 GiB more.*--batch below 7; a model of smaller images .*Fewer steps do not"
    ):
        with memory_explained(Greedy(None, batch=7), 100):
            raise gpu
    with pytest.raises(VerisimError, match="helps: -n below 3;"), memory_explained(Greedy(None), 3):
        raise MemoryError
    with (
        pytest.raises(VerisimError, match="helps: a model of smaller"),
        memory_explained(Greedy(None, batch=4), 1),
    ):
        raise gpu
    with pytest.raises(RuntimeError, match="something else"), memory_explained(Greedy(None), 3):
        raise RuntimeError("something else")


def test_out_of_memory_on_the_command_line(tmp_path, capsys, monkeypatch):
    """Both ways of sampling end in the sentence, exit code 2, and no half-written folder."""
    run = run_folder(tmp_path / "run")

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("verisim.models.diffusion.denoising.DenoisingDiffusion.denoise", fail)
    assert "(2 GiB more were asked for)" in fails(capsys, run, "-n", 2, "--out", tmp_path / "out")
    files = [
        "--inpaint",
        picture(tmp_path / "i.png", noise(0)),
        "--mask",
        picture(tmp_path / "m.png", half()),
    ]
    assert "Sampling 2 image(s)" in fails(capsys, run, "-n", 2, "--out", tmp_path / "out", *files)
    assert not (tmp_path / "out").exists()
