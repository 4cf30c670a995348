"""The diffusion model: exact plumbing, sampling contract, and that it learns what it should."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from verisim.data.spec import ImageSpec
from verisim.diffusion.oracles import gaussian
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import vp_linear_table
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.models.diffusion.denoising import DenoisingDiffusion
from verisim.roles import Denoiser, Likelihood, Sampler

SPEC = ImageSpec((8, 8))
TINY = {"channels": (8, 8), "blocks": 1, "attention": (False, False)}
PARAMETRISATIONS = ["edm", "epsilon", "x0", "v", "flow"]


def tiny(spec=SPEC, num_classes=0, **settings):
    torch.manual_seed(0)
    model = build_model("diffusion", TINY | settings, spec, num_classes)
    assert isinstance(model, DenoisingDiffusion)
    for p in model.net.parameters():  # the output layer starts at 0: make it answer something
        torch.nn.init.normal_(p, std=0.1)
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Oracle(torch.nn.Module):
    """The network whose denoiser is optimal for Gaussian data, in any parametrisation."""

    stride = 2

    def __init__(self, parametrisation, data):
        super().__init__()
        self.p, self.data, self.sigma = parametrisation, data, None

    def forward(self, x_in, c_noise, label):
        c = self.p.coefficients(self.sigma)
        wide = [v.float().view(-1, 1, 1, 1) for v in c]
        x = x_in / wide[2]
        return (self.data.denoise(x, self.sigma) - wide[0] * x) / wide[1]


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_an_optimal_network_samples_the_data(parametrisation):
    """Model, parametrisation, schedule and sampler together: N(0.2, 0.1^2) comes out, and bits/dim is its own."""
    data = gaussian(0.2, 0.1)
    model = tiny(
        parametrisation=parametrisation, sigma_data=0.1, sampler="dpmpp_2m", schedule="flow", steps=20
    )
    model.net = Oracle(model.parametrisation, data)
    plain = model.parametrisation.denoise

    def denoise(network, x, sigma, label=None):
        model.net.sigma = sigma
        return plain(network, x, sigma, label)

    model.parametrisation.denoise = denoise
    x = model.sample(64, generator=seeded())
    assert float(x.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(x.std()) == pytest.approx(0.1, rel=0.05)
    entropy = math.log2(0.1 * math.sqrt(2 * math.pi * math.e) / (2 / 255))
    assert float(model.bits_per_dim(x, generator=seeded()).mean()) == pytest.approx(entropy, abs=0.1)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (8, 8, 8)])
def test_roles_shapes_and_ranges(parametrisation, size):
    """Sampler, Denoiser and Likelihood in 2D and 3D, also at sizes the U-Net must pad."""
    model = tiny(ImageSpec(size, channels=2), parametrisation=parametrisation)
    assert isinstance(model, Sampler)
    assert isinstance(model, Denoiser)
    assert isinstance(model, Likelihood)
    assert model.likelihood_is_bound
    model.configure_sampling(steps=3)
    x = model.sample(2, generator=seeded())
    model.spec.check(x, tolerance=0)
    assert x.dtype == torch.float32
    loss, parts = model.training_loss(x, None)
    assert loss.shape == parts["sigma"].shape == (2,)
    loss.mean().backward()
    assert model.denoise(x, torch.ones(2)).shape == x.shape
    bits = model.bits_per_dim(x, generator=seeded())
    assert bits.shape == (2,)
    assert torch.isfinite(bits).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_come_from_the_generator_alone(sampler):
    """Same generator, same bits, whatever the global state; and the network's mode is left as it was."""
    model = tiny()
    model.configure_sampling(sampler=sampler, steps=3, schedule="auto")
    model.net.train()
    images = []
    for seed, glob in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(glob)
        images.append(model.sample(3, generator=seeded(seed)))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert model.net.training
    assert not torch.equal(model.sample(1), model.sample(1))


def test_the_moving_average_is_what_samples():
    """Changing `net` after EMA was taken does not change samples."""
    model = tiny()
    model.enable_ema(0.9)
    before = model.sample(1, generator=seeded())
    with torch.no_grad():
        for p in model.net.parameters():
            p.add_(1.0)
    assert torch.equal(model.sample(1, generator=seeded()), before)


@pytest.mark.parametrize("n", [1, 2, 3, 999, 1000])
def test_the_literal_system_at_any_number_of_steps(n):
    """Source 004's sampler is defined from 1 to 1000 steps; 1001 has no such level and says so."""
    model = tiny(parametrisation="epsilon")
    assert (model.options.sampler, model.options.schedule, model.options.steps) == ("ddpm", "vp_linear", 1000)
    assert model.options.clip
    model.configure_sampling(steps=n)
    assert len(model.sigmas()) == n + 1
    model.configure_sampling(steps=1001)
    with pytest.raises(VerisimError, match=r"1\.\.\.1000"):
        model.sample(1)


def test_the_systems_of_source_004_can_be_built():
    """Section 3 D: six levels with attention in the fifth (114 M parameters), and three levels at 32."""
    literal = {
        "parametrisation": "epsilon",
        "lr": 1e-4,
        "warmup": 500,
        "cosine_decay": True,
        "sampler": "ddpm",
        "schedule": "vp_linear",
        "steps": 1000,
    }
    attention = (False, False, False, False, True, False)
    wide = literal | {"channels": (128, 128, 256, 256, 512, 512), "attention": attention}
    with pytest.raises(VerisimError, match=r"fewer than 4 pixels.*at least 128 pixels"):
        build_model("diffusion", wide, ImageSpec((32, 32)))  # its black images
    with torch.device("meta"):  # the source's own 64 pixels shrink to 2
        full = build_model("diffusion", wide | {"allow_small_features": True}, ImageSpec((64, 64)))
    assert sum(p.numel() for p in full.net.parameters()) == pytest.approx(114e6, rel=0.25)
    small = build_model(
        "diffusion",
        literal | {"channels": (32, 64, 128), "attention": (False, True, False)},
        ImageSpec((32, 32)),
    )
    assert isinstance(small, DenoisingDiffusion)
    x = torch.zeros(2, 1, 32, 32)
    torch.manual_seed(0)
    sigma = small.training_loss(x, None)[1]["sigma"]
    table = vp_linear_table().float()
    assert all(bool((table == s).any()) for s in sigma)


def test_untrained_epsilon_loss_is_one():
    """A zero output layer predicts eps = 0: the literal loss starts at E eps^2 = 1, EDM's at E target^2 = 1."""
    x = torch.zeros(64, 1, 8, 8)
    for parametrisation in ("epsilon", "edm"):
        torch.manual_seed(0)
        model = build_model("diffusion", TINY | {"parametrisation": parametrisation}, SPEC)
        data = x if parametrisation == "epsilon" else 0.5 * torch.randn_like(x)
        assert float(model.training_loss(data, None)[0].detach().mean()) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(
    ("noise", "parametrisation", "median"),
    [("lognormal", "edm", math.exp(-1.2)), ("logit_normal", "flow", 1.0), ("vp_linear", "v", None)],
)
def test_training_noise_follows_its_distribution(noise, parametrisation, median):
    """Stratified draws: the quantiles of one large batch are those of the distribution."""
    model = tiny(parametrisation=parametrisation, noise=noise)
    sigma = model.draw_sigma(4001).sort().values
    expected = median if median is not None else float(vp_linear_table()[500])
    assert float(sigma[2000]) == pytest.approx(expected, rel=0.01)
    assert bool((sigma > 0).all())
    spread = float((sigma[3365] / sigma[635]).log()) / 2  # one standard deviation either way
    if noise == "lognormal":
        assert spread == pytest.approx(1.2, rel=0.02)


def test_learning_rate_schedule():
    """500 steps up, then half a cosine to 0; constant where the length is unknown or none was asked."""
    model = tiny(warmup=500, cosine_decay=True)
    assert model.lr_scale(0, 1500) == 1 / 500
    assert model.lr_scale(499, 1500) == 1.0
    assert model.lr_scale(1000, 1500) == pytest.approx(0.5)
    assert model.lr_scale(1500, 1500) == pytest.approx(0.0)
    assert model.lr_scale(2000, 1500) == pytest.approx(0.0)
    assert model.lr_scale(10_000, None) == 1.0
    assert tiny().lr_scale(0, 100) == 1.0


def test_classes_and_guidance():
    """Labels matter, none means the null class, scale 0 equals it, and 1e6 is finite."""
    model = tiny(num_classes=3)
    model.configure_sampling(steps=3)
    draw = partial(model.sample, 3, generator=None)
    a, b = (model.sample(3, torch.tensor(c), seeded()) for c in ([0, 1, 2], [1, 1, 2]))
    assert not torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1:], b[1:])
    null = model.sample(3, None, seeded())
    model.configure_sampling(guidance=0.0)
    torch.testing.assert_close(model.sample(3, torch.tensor([0, 1, 2]), seeded()), null)
    for scale in (-3.0, 4.0, 1e6):
        model.configure_sampling(guidance=scale)
        assert torch.isfinite(draw(condition=torch.tensor([0, 1, 2]))).all()
    with pytest.raises(VerisimError, match=r"knows 0\.\.\.2"):
        model.sample(1, torch.tensor([3]))
    with pytest.raises(VerisimError, match="without classes"):
        tiny().sample(1, torch.tensor([0]))


def test_label_dropout():
    """A tenth of the labels becomes the null class in training; 0 and 1 are none and all."""
    label = torch.zeros(2000, dtype=torch.long)
    for p in (0.0, 0.1, 1.0):
        dropped = tiny(num_classes=2, label_dropout=p)._drop_labels(label)
        assert float((dropped == 2).float().mean()) == pytest.approx(p, abs=0.03)
    assert tiny()._drop_labels(label) is None


def test_bfloat16_sampling_is_close_and_returns_float32():
    """The state stays float32: bf16 inside the network moves samples by its rounding only."""
    model = tiny()
    model.configure_sampling(steps=5)
    a = model.sample(4, generator=seeded())
    model.bf16_sampling = True
    b = model.sample(4, generator=seeded())
    assert b.dtype == torch.float32
    assert 0 < float((a - b).abs().mean()) < 0.05


def test_batches_and_previews():
    """Batches only split the work; the callback sees every step."""
    model = tiny()
    model.configure_sampling(steps=2, batch=2)
    seen = []
    x = model.sample(5, generator=seeded(), callback=seen.append)
    assert x.shape == (5, 1, 8, 8)
    assert [len(step.x0) for step in seen] == [2, 2, 2, 2, 1, 1]


def test_padding_does_not_change_legal_sizes():
    """A size that is a multiple of the stride reaches the network as it is."""
    model = tiny()
    x = torch.randn(2, 1, 8, 8)
    c = torch.zeros(2)
    torch.testing.assert_close(model._network(model.net, nullcontext(), x, c, None), model.net(x, c, None))


def test_denoise_is_differentiable():
    """Posterior sampling needs the gradient through the denoiser."""
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    tiny().denoise(x, torch.ones(1)).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "whole number of at least 1"),
        ({"sampler": "huen"}, "Did you mean 'heun'"),
        ({"schedule": "karas"}, "Did you mean 'karras'"),
        ({"sampler": "euler", "churn": 40.0}, "churn = 40 has no meaning for sampler 'euler'"),
        ({"eta": 0.5}, "eta = 0.5 has no meaning for sampler 'heun'"),
        ({"step": 5}, "Did you mean 'steps'"),
    ],
)
def test_bad_sampling_options(options, message):
    """Each wrong option gets one sentence when it is set, not in the middle of a run."""
    with pytest.raises(VerisimError, match=message):
        tiny().configure_sampling(**options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parametrisation": "epsilon", "noise": "lognormal"}, "counts training steps"),
        ({"channels": (8, 8, 8), "attention": (False,) * 3}, "fewer than 4 pixels"),
        ({"sigma_data": 0.0}, "Constant images"),
        ({"parametrisation": "w"}, "Unknown parametrisation"),
    ],
)
def test_bad_settings(settings, message):
    """A model that could not work is refused when it is built."""
    with pytest.raises(VerisimError, match=message):
        tiny(**settings)
    tiny(channels=(8, 8, 8), attention=(False,) * 3, allow_small_features=True)


def test_none_or_negative_images_are_refused():
    """Zero images is a mistake, not an empty file."""
    with pytest.raises(VerisimError, match="at least 1"):
        tiny().sample(0)


@pytest.mark.parametrize("parametrisation", ["edm", "v", "flow"])
def test_it_learns_where_bright_things_are(parametrisation):
    """100 steps on images that are bright on the right: samples are, too, and untrained ones are not."""
    torch.manual_seed(0)
    model = build_model(
        "diffusion", TINY | {"channels": (16, 16), "lr": 3e-3, "parametrisation": parametrisation}, SPEC
    )

    def side(x):
        return float((x[..., 4:] - x[..., :4]).mean())

    before = side(model.sample(32, generator=seeded()))
    optimiser = model.optimizer()
    for step in range(100):
        torch.manual_seed(step)
        x = 0.1 * torch.randn(16, 1, 8, 8)
        x[..., 4:] += 0.6
        x[..., :4] -= 0.6
        optimiser.zero_grad()
        loss, _ = model.training_loss(x.clamp(-1, 1), None)
        loss.mean().backward()
        optimiser.step()
    assert abs(before) < 0.3
    assert side(model.sample(32, generator=seeded())) == pytest.approx(1.2, abs=0.25)
