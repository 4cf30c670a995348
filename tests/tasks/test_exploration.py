"""Traversals move what they say and nothing else; statistics are those of a model known in closed form."""

import pytest
import torch

from verisim.cli.main import main
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.tasks.exploration import interpolate, latent_use, require_latents, traverse


class Linear:
    """z_j = mean of quadrant j of an 8x8 image; decoding paints the quadrants; posterior variance 0.25."""

    family = "toy"

    def posterior(self, x):
        z = x.view(-1, 2, 4, 2, 4).mean((2, 4)).flatten(1)  # (B, 4)
        return z, torch.full_like(z, 0.25).log()

    def encode(self, x):
        return self.posterior(x)[0]

    def decode(self, z):
        return z.view(-1, 1, 2, 1, 2, 1).expand(-1, 1, 2, 4, 2, 4).reshape(-1, 1, 8, 8)


@pytest.fixture
def images():
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[:, :, 4:, 4:] += 0.5 * torch.linspace(-1, 1, 50).view(-1, 1, 1, 1)  # the last quadrant varies most
    return x.clamp(-1, 1)


def test_latent_use_is_the_law_of_total_variance(images):
    """std^2 = var(mean) + mean(variance); KL as in closed form; the varying quadrant is the busiest."""
    model = Linear()
    use, z = latent_use(model, images), model.encode(images).double()
    assert torch.allclose(use.std.square(), z.var(0, correction=0) + 0.25, atol=1e-6)
    kl = 0.5 * (z.square() + 0.25 - 1 - torch.tensor(0.25).double().log()).mean(0)
    assert torch.allclose(use.kl, kl, atol=1e-6)
    assert use.busiest(1) == [3]


def test_traverse_moves_one_latent(images):
    """The middle frame is the reconstruction; frames differ in their own quadrant only, by std * step."""
    model = Linear()
    use = latent_use(model, images)
    found = traverse(model, images[0], use, dims=[1], frames=5, span=2.0)
    base = model.decode(model.encode(images[:1]))[0]
    assert torch.allclose(found.frames[0, 2], base, atol=1e-6)
    moved = found.frames[0, 4] - base
    assert torch.allclose(moved[0, :4, 4:], torch.full((4, 4), 2.0) * use.std[1].float(), atol=1e-5)
    moved[0, :4, 4:] = 0
    assert float(moved.abs().max()) < 1e-6
    heat = found.heat[0] > 1e-6
    assert heat[:4, 4:].all() and int(heat.sum()) == 16
    assert float(found.jump[0]) == pytest.approx(1.0, abs=1e-4)  # a linear decoder is perfectly smooth


def test_interpolation_ends_at_both_images(images):
    model = Linear()
    frames = interpolate(model, images[0], images[1], 3)
    ends = model.decode(model.encode(images[:2]))
    assert torch.allclose(frames[[0, 2]], ends, atol=1e-6)
    assert torch.allclose(frames[1], ends.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    "options, words",
    [({"dims": [4]}, r"latents 0\.\.\.3"), ({"frames": 4}, "odd number"), ({"span": 0.0}, "positive number")],
)
def test_what_cannot_be_traversed(images, options, words):
    model = Linear()
    with pytest.raises(VerisimError, match=words):
        traverse(model, images[0], latent_use(model, images), **options)


def test_a_model_without_latents_is_refused():
    """A diffusion model has nothing to traverse; the sentence says what has."""
    settings = {"channels": (8, 16), "blocks": 1, "attention": (False, False)}
    with pytest.raises(VerisimError, match="no continuous latent"):
        require_latents(build_model("diffusion", settings, ImageSpec((16, 16))))


def test_explore_from_the_command_line(tmp_path, capsys):
    """Train for two steps on phantoms; traverse, interpolate and probe write what they promise."""
    run, out = tmp_path / "run", tmp_path / "out"
    data = ["--data.count=150", "--data.size=16", "--data.label=label"]
    budget = ["--training.max_steps=2", "--training.max_minutes=0", "--model.width=8", "--model.latent=6"]
    assert main(["train", "X-V-fix", "--out", str(run), *data, *budget]) == 0
    assert main(["explore", "traverse", str(run), "--out", str(out), "--count", "3", "--frames", "5"]) == 0
    page = (out / "explorer.html").read_text()
    assert page.count('type="range"') == 3 and "http" not in page.replace("http-equiv", "")
    assert (out / "traversal.png").exists() and (out / "latents.json").exists()
    assert main(["explore", "interpolate", str(run), "--out", str(out), "--to", "2"]) == 0
    assert (out / "interpolation.png").exists()
    assert main(["explore", "probe", str(run), "--out", str(out)]) == 0
    assert "cardiothoracic_ratio" in capsys.readouterr().out and (out / "probes.json").exists()


@pytest.mark.parametrize(
    "options, words", [(["--dims", "99"], "latents 0...5"), (["--image", "9999"], "held-out")]
)
def test_explore_refuses(tmp_path, capsys, options, words):
    run = tmp_path / "run"
    data = ["--data.count=60", "--data.size=16"]
    budget = ["--training.max_steps=1", "--training.max_minutes=0", "--model.width=8", "--model.latent=6"]
    assert main(["train", "X-V-fix", "--out", str(run), *data, *budget]) == 0
    assert main(["explore", "traverse", str(run), "--out", str(tmp_path / "o"), *options]) == 2
    assert words in capsys.readouterr().err
