"""Age-guided diffusion: published sizes, encode and decode against a known denoiser, guidance, refusals."""

from dataclasses import replace

import pytest
import torch

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.models.diffusion.age_guided import AgeGuidedDiffusion
from verisim.nets.guided_encoder import GuidedEncoder
from verisim.phantoms import growing_brain
from verisim.seeding import generator

SMALL = {"channels": (8, 16), "blocks": 1, "attention": (False, False), "regressor_attention": (False, True),
         "depth": 1, "head_channels": 8, "groups": 4, "lr": 2e-3}  # fmt: skip


def test_published_parameter_counts():
    """Denoiser and regressor have exactly as many as the source's table says; nothing is allocated."""
    with torch.device("meta"):
        model = AgeGuidedDiffusion(ImageSpec((256, 256)))
    count = {k: sum(p.numel() for p in getattr(model.net, k).parameters()) for k in ("denoiser", "regressor")}
    assert count == {"denoiser": 113_669_762, "regressor": 86_786_817}


def gaussian():
    """A model whose denoiser is that of N(0, 1) data and whose age is the mean pixel, 35 + 5 m."""
    torch.manual_seed(0)
    model = build_model("age_guided", SMALL, ImageSpec((16, 16)))
    model.net.denoiser.forward = lambda y, step: torch.zeros_like(y).repeat(1, 2, 1, 1)
    plain = AgeGuidedDiffusion.estimate

    def estimate(x, sigma, age=None, c=0.0):
        moved = plain(model, x, sigma, age, c)  # no noise is seen in x, so the answer is x
        return moved - x + x / (1 + sigma**2)

    model.estimate = estimate
    model._age = lambda net, x, sigma: x.flatten(1).mean(1) * 10
    return model


def images():
    return (torch.randn(2, 1, 16, 16, generator=generator(0)) * 0.4).clamp(-0.9, 0.9)


def test_encode_and_decode_give_the_image_back():
    """Without guidance, reverse DDIM and DDIM are inverse up to the steps' size: 25 dB, better with more steps."""
    x = images()
    model = gaussian()
    error = [(model.at_age(x, None, level=600, steps=k) - x).square().mean() for k in (20, 100, 600)]
    assert error[0] > error[1] > error[2]
    assert 10 * float(torch.log10(4 / error[2])) > 25
    again = model.at_age(x, None, level=600, steps=20)
    assert torch.equal(again, model.at_age(x, None, level=600, steps=20))  # no noise is drawn


def test_guidance_moves_towards_the_age():
    """The regressor's age rises monotonically with c towards the one asked for, both ways; a huge c breaks the image."""
    x = images()
    model = gaussian()
    ages = [
        float((model.at_age(x, 38.0, 600, c, steps=50).mean() * 10) * 5 + 35) for c in (0.0, 0.03, 0.1, 0.3)
    ]
    assert ages == sorted(ages) and ages[-1] - ages[0] > 0.5 and ages[-1] < 38.5
    younger = float((model.at_age(x, 32.0, 600, 0.3, steps=50).mean() * 10) * 5 + 35)
    assert younger < ages[0] - 0.5
    with pytest.raises(VerisimError, match=r"guidance of strength 1000 overshoots.*Lower it"):
        model.at_age(x, 38.0, 600, 1e3, steps=50)


def test_every_image_has_its_own_age():
    """Ages (B,) guide each image as it is guided alone."""
    x, model = images(), gaussian()
    both = model.at_age(x, torch.tensor([38.0, 32.0]), 600, 0.1, steps=10)
    alone = [model.at_age(x[k : k + 1], age, 600, 0.1, steps=10) for k, age in enumerate((38.0, 32.0))]
    assert torch.allclose(both, torch.cat(alone), atol=1e-6)
    assert not torch.allclose(both[:1], model.at_age(x[:1], 32.0, 600, 0.1, steps=10), atol=1e-3)


def test_guidance_is_the_formula():
    """D - c sigma^2 grad (R - a)^2, for a linear R by hand."""
    model = gaussian()
    x, sigma, c = images(), 0.7, 2e-3
    r = x.flatten(1).mean(1) * 10
    want = (38.0 - 35) / 5
    slope = (2 * (r - want) * 10 / 256).view(2, 1, 1, 1).expand_as(x)
    found = model.estimate(x, sigma, 38.0, c)
    assert torch.allclose(found, x / (1 + sigma**2) - c * sigma**2 * slope, atol=1e-6)


def test_it_learns_noise_and_age():
    """A few seconds on phantoms: both losses fall below those of the start, and ages are told apart."""
    torch.manual_seed(0)
    made = growing_brain.make(48, 0, 16)
    x, ages = made.images.pixels, made.factors["age"]
    model = build_model("age_guided", SMALL, made.images.spec)
    model.meet(replace(made.images, ages=ages))
    adam = model.optimizer()
    history = []
    for _ in range(120):
        i = torch.randint(48, (12,))
        loss, parts = model.losses(x[i], ages[i])
        adam.zero_grad()
        loss.mean().backward()
        adam.step()
        history.append([float(parts[k].detach().mean()) for k in ("noise", "age")])
    first, last = torch.tensor(history[:15]).mean(0), torch.tensor(history[-15:]).mean(0)
    assert last[0] < 0.5 * first[0] and last[1] < 0.8 * first[1]
    seen = model.eval().age_of(x)
    assert float(torch.corrcoef(torch.stack([seen, ages]))[0, 1]) > 0.6


def test_refusals():
    """No ages, classes, another size, impossible settings."""
    model = gaussian()
    made = growing_brain.make(2, 0, 16).images
    with pytest.raises(VerisimError, match="needs the age of each image"):
        model.meet(made)
    with pytest.raises(VerisimError, match="ages, not classes"):
        build_model("age_guided", SMALL, ImageSpec((16, 16)), 2)
    with pytest.raises(VerisimError, match=r"level=1000.*from 1 to 999"):
        model.at_age(images(), 38.0, level=1000)
    encoder = GuidedEncoder((16, 16), 1, 1, (8, 16), 1, (False, True), 8, 4)
    with pytest.raises(VerisimError, match=r"made for \(16, 16\) only"):
        encoder(torch.zeros(1, 1, 32, 32), torch.zeros(1))
