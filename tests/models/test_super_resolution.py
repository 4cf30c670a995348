"""Super-resolution: what its condition is exactly, consistency with the low image, what is refused."""

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.hub.weights import ModelCard, save_model
from verisim.models import build_model
from verisim.models.diffusion.super_resolution import averaged, enlarged, projected
from verisim.tasks.generation import Generated
from verisim.tasks.upscaling import upscale

SMALL = {"channels": (8, 16), "blocks": 1, "attention": (False, False), "steps": 2, "factor": 2}


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def made(size=(16, 16), **settings):
    torch.manual_seed(0)
    model = build_model("super_resolution", {**SMALL, **settings}, ImageSpec(size))
    with torch.no_grad():
        for p in model.net.parameters():
            if not p.any():
                p.normal_(std=0.1, generator=seeded(1))
    return model.eval()


def smooth(n, *size):
    coarse = torch.rand(n, 1, *[4] * len(size), generator=seeded(2)) * 2 - 1
    return torch.nn.functional.interpolate(
        coarse, size=size, mode="bilinear" if len(size) == 2 else "trilinear"
    )


def test_averaging_is_block_means():
    """Golden: 2x2 blocks; 3D too."""
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert averaged(x, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert averaged(torch.arange(8.0).view(1, 1, 2, 2, 2), 2).item() == 3.5


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_condition_is_what_it_says(size):
    """The enlarged image, plus level times the noise, and a channel of the level; nothing at level 0."""
    model = made(size, allow_small_features=True)
    low = averaged(smooth(3, *size), 2)
    noise = torch.randn(3, 1, *size, generator=seeded(3))
    level = torch.tensor([0.0, 0.1, 0.2])
    c = model.condition_from(low, level, noise)
    per = level.view(3, 1, *[1] * len(size))
    assert torch.equal(c[:, :1], enlarged(low, 2) + per * noise) and torch.equal(
        c[:, 1:], per.expand(3, 1, *size)
    )
    assert torch.equal(model.check_condition(3, low)[:, :1], enlarged(low, 2))


def test_null_is_no_image():
    """The dropped condition is what the model sees without one: guidance 0 and no image agree exactly."""
    model = made()
    x, sigma, low = (
        torch.randn(2, 1, 16, 16, generator=seeded()),
        torch.ones(2),
        averaged(smooth(2, 16, 16), 2),
    )
    null = model.null_condition.expand(2, 2, 16, 16)
    assert torch.equal(model.denoise(x, sigma, null), model.denoise(x, sigma))
    assert torch.equal(made(low_dropout=1.0)._drop_labels(model.check_condition(2, low)), null)
    model.configure_sampling(guidance=0.0)
    assert torch.equal(model.sample(2, low, seeded(4)), model.sample(2, None, seeded(4)))


def test_low_image_matters_and_padding_is_handled():
    """Other low images, other results; sides that are no multiple of the stride work."""
    model = made((18, 18))
    low = averaged(smooth(2, 18, 18), 2)
    a, b = model.sample(2, low, seeded()), model.sample(2, -low, seeded())
    assert a.shape == (2, 1, 18, 18) and not torch.allclose(a, b, atol=1e-3)


def test_projection_is_exact_and_stays_in_range():
    """Any image, any low image: averages down to it exactly, within [-1, 1], and leaves a fitting one alone."""
    x = torch.rand(4, 1, 16, 16, generator=seeded()).double() * 2 - 1
    low = torch.rand(4, 1, 4, 4, generator=seeded(1)).double() * 2 - 1
    low[0, 0, 0, 0], low[0, 0, 0, 1] = 1.0, -1.0
    y = projected(x, low, 4)
    assert torch.allclose(averaged(y.float(), 4).double(), low, atol=2e-6)
    assert float(y.abs().max()) <= 1 + 1e-9
    assert torch.allclose(projected(x, averaged(x, 4), 4), x, atol=1e-5)


def test_consistency_against_bicubic():
    """option consistent: exact. Bicubic enlargement, the control, is not; nor is the untrained model itself."""
    model, low = made(), averaged(torch.rand(4, 1, 16, 16, generator=seeded(5)) * 2 - 1, 2)

    def error(x):
        return float((averaged(x, 2) - low).abs().mean())

    plain = error(model.sample(4, low, seeded()))
    model.configure_sampling(consistent=True)
    assert error(model.sample(4, low, seeded())) < 1e-6 < error(enlarged(low, 2)) < plain


def test_augmentation_noise_is_drawn_from_the_generator():
    """The same generator, the same result; other noise, another; more than trained with is refused."""
    model, low = made(), averaged(smooth(2, 16, 16), 2)
    model.configure_sampling(augmentation=0.2)
    a, b = model.sample(2, low, seeded(1)), model.sample(2, low, seeded(1))
    assert torch.equal(a, b) and not torch.equal(a, model.sample(2, low, seeded(2)))
    with pytest.raises(VerisimError, match=r"augmentation = 0.5.*up to 0.3"):
        model.configure_sampling(augmentation=0.5)


def test_cascade(tmp_path):
    """The second stage takes the first one's images, keeps what they were asked for, and checks their size."""
    model = made()
    save_model(tmp_path / "w", model, ModelCard("super_resolution", SMALL, model.spec))
    small = Images(averaged(smooth(3, 16, 16), 2), ImageSpec((8, 8)), texts=("a", "b", "c"))
    out = upscale(Generated(small, 1.0), str(tmp_path / "w")).images
    assert out.pixels.shape == (3, 1, 16, 16) and out.texts == ("a", "b", "c")
    with pytest.raises(VerisimError, match=r"enlarges images of shape \(1, 8, 8\)"):
        upscale(Generated(Images(smooth(1, 16, 16), ImageSpec((16, 16))), 1.0), str(tmp_path / "w"))
    other = {"channels": (8, 16), "blocks": 1, "attention": (False, False)}
    save_model(
        tmp_path / "d", build_model("diffusion", other, model.spec), ModelCard("diffusion", other, model.spec)
    )
    with pytest.raises(VerisimError, match=r"holds a diffusion model"):
        upscale(Generated(small, 1.0), str(tmp_path / "d"))


def test_what_is_refused():
    """Factors that do not divide, classes, low images of another size or range."""
    with pytest.raises(VerisimError, match=r"factor = 3: images of 16x16"):
        made(factor=3)
    with pytest.raises(VerisimError, match=r"takes an image, no class"):
        build_model("super_resolution", SMALL, ImageSpec((16, 16)), 3)
    with pytest.raises(VerisimError, match=r"augmentation = 2"):
        made(augmentation=2)
    model = made()
    with pytest.raises(VerisimError, match=r"without classes"):
        model.sample(1, torch.tensor([0]), seeded())
    with pytest.raises(RangeError, match=r"images to enlarge"):
        model.sample(1, 3 * torch.ones(1, 1, 8, 8), seeded())
