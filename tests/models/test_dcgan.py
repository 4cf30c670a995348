"""The DCGAN family: golden counts, the two steps' isolation, exact losses, and a short training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import LossError, RangeError, VerisimError
from verisim.models.adversarial.dcgan import DCGAN
from verisim.models.adversarial.networks import MinibatchStd, check_size
from verisim.recipes import load_recipe

X_G0 = {k: v for k, v in load_recipe("X-G0").settings("source")["model"].items() if k != "name"}
SMALL = {"nf": 8, "latent": 16, "max_width": 64}


def blobs(n: int, side: int, seed: int = 0) -> Tensor:
    """Gaussian spots of random place and width on black, (n, 1, side, side) in [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    r = torch.linspace(-1, 1, side)
    centre, width = torch.rand(n, 2, 1, 1, generator=g) - 0.5, 0.1 + 0.3 * torch.rand(n, 1, 1, generator=g)
    square = (r[:, None] - centre[:, 0]) ** 2 + (r[None] - centre[:, 1]) ** 2
    return (2 * torch.exp(-square / (2 * width**2)) - 1)[:, None]


def build(side: int = 16, num_classes: int = 0, channels: int = 1, **settings) -> DCGAN:
    """A DCGAN that steps without a Lightning trainer."""
    torch.manual_seed(0)
    model = DCGAN(ImageSpec((side, side), channels), num_classes, **{**SMALL, **settings})
    model.manual_backward = lambda loss: loss.backward()
    optimizers = model.optimizer()
    model.optimizers = lambda: optimizers
    model.seen = []
    model.log_parts = lambda parts: model.seen.append({k: float(v.mean()) for k, v in parts.items()})
    return model


def state(net: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def changed(net: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("side", "millions"), [(32, 1.07), (64, 3.57), (128, 12.8)])
def test_literal_generator_has_the_published_size(side, millions):
    """Golden numbers of source 004: the literal architecture is the source's, stage for stage."""
    net = DCGAN(ImageSpec((side, side)), **X_G0).net
    assert count(net) / 1e6 == pytest.approx(millions, abs=0.05 if side == 128 else 0.005)


def test_literal_discriminator_has_the_published_size():
    """Golden number of source 004: 2.76 M at 64 px."""
    assert count(DCGAN(ImageSpec((64, 64)), **X_G0).discriminator) == 2_763_520


def test_literal_initialisation():
    """Weights N(0, .03) and batch-norm gains N(1, .03), as in the source."""
    torch.manual_seed(0)
    net = DCGAN(ImageSpec((64, 64)), **X_G0).net
    assert float(net.layers[0].weight.detach().std()) == pytest.approx(0.03, rel=0.02)
    assert float(net.layers[1].weight.detach().mean()) == pytest.approx(1, abs=0.01)
    assert float(net.layers[1].bias.detach().abs().max()) == 0


@pytest.mark.parametrize("form", ["literal", "corrected"])
def test_each_step_moves_its_own_network_only(form):
    """A GAN is a two-player game: D's step leaves all of G alone, and (corrected) G's step all of D."""
    literal = {**X_G0, **SMALL} if form == "literal" else {"r1_interval": 1}
    model = build(**literal)
    x, (opt_g, opt_d) = blobs(8, 16), model.optimizers()
    fake = model.net(torch.randn(8, 16))
    g, d = state(model.net), state(model.discriminator)
    model.discriminator_step(x, fake.detach(), None, opt_d)
    assert changed(model.net, g) == set()
    assert changed(model.discriminator, d)
    d = state(model.discriminator)
    model.generator_step(fake, x, None, opt_g)
    assert changed(model.net, g)
    moved = changed(model.discriminator, d)
    if form == "corrected":
        assert moved == set()
    else:  # as in the source, the running statistics (and they alone) see the fakes once more
        assert moved and all("running" in k or "num_batches" in k for k in moved)


def test_held_statistics_keep_a_batch_normalised_discriminator():
    """hold_statistics isolates the steps for batch norm too: G's step normalises by its batch, unseen."""
    model = build(discriminator_norm="batch", spectral_norm=False, hold_statistics=True)
    x, (opt_g, _) = blobs(8, 16), model.optimizers()
    d = state(model.discriminator)
    model.generator_step(model.net(torch.randn(8, 16)), x, None, opt_g)
    assert changed(model.discriminator, d) == set()
    assert model.discriminator.training
    assert all(p.requires_grad for p in model.discriminator.parameters())


def test_training_step_runs_the_generator_once():
    """G's running statistics move once per batch, not once per player."""
    model = build()
    model.training_step({"image": blobs(8, 16)}, 0)
    assert int(model.net.layers[1].num_batches_tracked) == 1


def test_spectral_norm_bounds_every_singular_value():
    """Largest singular value of each normalised weight is 1 after enough power iterations."""
    model = build(spectral_norm=True)
    for _ in range(60):
        model.discriminator(blobs(4, 16))
    weights = [m.weight for m in model.discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(weights) == 3
    for w in weights:
        assert float(torch.linalg.matrix_norm(w.detach().flatten(1), 2)) == pytest.approx(1, abs=0.02)


WGAN_GP = {
    "loss": "wasserstein",
    "gradient_penalty": 10.0,
    "critic_steps": 5,
    "r1": 0.0,
    "minibatch_std": False,
    "lr_ratio": 1.0,
    "beta1": 0.0,
    "beta2": 0.9,
}


def test_critic_steps_train_the_generator_at_every_fifth_batch():
    """WGAN-GP: D learns from every batch, G from the last of five."""
    model, x = build(**WGAN_GP), blobs(8, 16)
    names = [name for name, _ in model.net.named_parameters()]
    moved = []
    for step in range(10):
        g, d = state(model.net), state(model.discriminator)
        model.training_step({"image": x}, step)
        assert changed(model.discriminator, d)
        moved.append(bool(changed(model.net, g) & set(names)))
        model.step += 1
    assert moved == [False] * 4 + [True] + [False] * 4 + [True]


def test_gradient_penalty_keeps_the_critics_slope_near_one():
    """After forty steps the critic's gradient between real and fake is about 1; without the penalty it is not."""
    from verisim.models.adversarial.losses import gradient_penalty

    def slope_error(**settings) -> float:
        model, x = build(**{**WGAN_GP, "lr": 2e-3, **settings}), blobs(64, 16)
        train(model, x, 40, 32)
        with torch.no_grad():
            fake = model.net(torch.randn(64, 16))
        return float(gradient_penalty(model.discriminator, x, fake).mean())

    bounded, free = slope_error(), slope_error(gradient_penalty=1e-9)
    assert bounded < 0.3 and free > 3 * bounded


def test_a_critic_without_bounded_slope_or_with_mixed_images_is_refused():
    with pytest.raises(VerisimError, match=r"no lower bound.*--model.gradient_penalty 10"):
        build(loss="wasserstein")
    with pytest.raises(VerisimError, match=r"--model.minibatch_std false"):
        build(**{**WGAN_GP, "minibatch_std": True})
    with pytest.raises(VerisimError, match="critic_steps is 0"):
        build(critic_steps=0)


@pytest.mark.parametrize("size", [(17, 9), (6, 5, 4)])
def test_dense_networks_take_any_size(size):
    """A fully connected GAN: 2D, 3D, classes, spectral norm; its weights count as three hidden layers do."""
    model = DCGAN(ImageSpec(size), 3, network="dense", hidden=20, latent=16, spectral_norm=True)
    pixels = model.spec.dims
    assert count(model.net) == 3 * 32 + (16 + 32 + 1) * 20 + 2 * 21 * 20 + 21 * pixels
    x = model.sample(4, torch.tensor([0, 1, 2, 0]))
    assert x.shape == (4, 1, *size) and float(x.abs().max()) <= 1
    loss, _ = model.discriminator_loss(x, x.flip(0), torch.tensor([0, 1, 2, 0]))
    assert loss.shape == (4,) and torch.isfinite(loss).all()


def test_minibatch_std_is_zero_for_identical_images():
    """No spread, no signal: exactly 0, so that it cannot hide a collapse."""
    h = torch.randn(1, 3, 4, 4).expand(8, -1, -1, -1)
    out = MinibatchStd()(h)
    assert out.shape == (8, 4, 4, 4)
    assert float(out[:, 3].abs().max()) == 0


def test_minibatch_std_equals_a_loop():
    """Groups are every (B/g)-th image; the channel is the mean over features of their deviation."""
    h = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    out = MinibatchStd(group=2)(h)[:, 3, 0, 0]
    for i in range(6):
        pair = h[[i % 3, i % 3 + 3]]
        assert float(out[i]) == pytest.approx(float(pair.std(0, unbiased=False).mean()), abs=2e-4)


@pytest.mark.parametrize("size", [(30, 30), (33, 17), (64, 32), (8, 8), (512, 512), (64,)])
def test_other_sizes_are_refused_with_the_nearest(size):
    """A size that the stages cannot reach is an error that names it and a legal one."""
    with pytest.raises(
        VerisimError, match="x".join(map(str, size)) + r".*Nearest: (16x16|32x32|64x64|256x256)"
    ):
        DCGAN(ImageSpec(size))


def test_nearest_size():
    """30 and 33x17 are nearest to 32 and to 16 or 32."""
    assert check_size((128, 128)) == 128
    with pytest.raises(VerisimError, match="Nearest: 32x32"):
        check_size((30, 30))


@pytest.mark.parametrize("side", [16, 32, 64])
def test_samples_have_shape_range_and_reproduce(side):
    """Sampler contract: shape, [-1, 1], float32, the same from the same generator, training mode kept."""
    model = build(side, channels=3)
    a, b, c = (model.sample(5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert a.shape == (5, 3, side, side) and a.dtype == torch.float32
    assert float(a.abs().max()) <= 1
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert model.net.training
    assert model.sample(0).shape == (0, 3, side, side)


def test_three_dimensions():
    """The same code makes volumes."""
    torch.manual_seed(0)
    model = DCGAN(ImageSpec((16, 16, 16)), **SMALL)
    x = model.sample(2)
    assert x.shape == (2, 1, 16, 16, 16)
    assert model.discriminator(x).shape == (2,)
    loss, _ = model.discriminator_loss(x, x, None)
    assert torch.isfinite(loss).all()


def test_temperature_zero_gives_one_image_and_negative_is_refused():
    """temperature scales z: at 0 there is one image; below 0 there is no meaning."""
    model = build()
    model.configure_sampling(temperature=0.0)
    x = model.sample(3)
    assert torch.allclose(x[0], x[1])
    model.configure_sampling(temperature=-1.0)
    with pytest.raises(VerisimError, match="temperature -1"):
        model.sample(1)


def test_classes_reach_both_networks():
    """Conditional: another class gives another image from the same z, and another score of one image."""
    model = build(num_classes=3)
    zeros, ones = (model.sample(4, torch.tensor(c), torch.Generator().manual_seed(0)) for c in (0, 1))
    assert float((zeros - ones).abs().max()) > 1e-3
    label = torch.zeros(4, dtype=torch.long)
    assert not torch.equal(model.realness(zeros, label), model.realness(zeros, label + 1))
    assert model.sample(4).shape == (4, 1, 16, 16)
    model.training_step({"image": blobs(8, 16), "label": torch.arange(8) % 3}, 0)
    with pytest.raises(VerisimError, match=r"0\.\.\.2"):
        model.sample(1, torch.tensor(3))


def test_judge_refuses_another_range():
    """The source's range bug: a judge trained on [-1, 1] must not score [0, 255]."""
    with pytest.raises(RangeError, match="values in"):
        build().realness(blobs(4, 16) * 255)


def test_clip_bounds_the_step_of_both_networks():
    """`clip` replaces the trainer's clipping, which manual optimisation switches off."""
    model = build(clip=1e-3, r1=0.0)
    model.training_step({"image": blobs(8, 16)}, 0)
    for net in (model.net, model.discriminator):
        squares = [p.grad.square().sum() for p in net.parameters() if p.grad is not None]
        assert float(torch.stack(squares).sum().sqrt()) <= 1.001e-3


def test_a_loss_that_is_not_finite_changes_nothing():
    """One bad batch is skipped, not learned."""
    model = build()
    g, x = state(model.discriminator), blobs(8, 16)
    x[0] = torch.nan
    _, opt_d = model.optimizers()
    model.discriminator_step(x, blobs(8, 16), None, opt_d)
    names = {k for k, _ in model.discriminator.named_parameters()}
    assert changed(model.discriminator, g) & names == set()


def test_ten_bad_batches_stop_although_g_is_fine():
    """A step counts as bad if either network's loss is: G's finite loss does not hide D's."""
    model = build()
    x = blobs(8, 16)
    x[0] = torch.nan
    with pytest.raises(LossError, match="ten steps in a row"):
        train(model, x, 10, 8 * len(x))  # the bad image is in each batch
    assert model.skipped == 10


def train(model: DCGAN, x: Tensor, steps: int, batch: int) -> None:
    """`steps` batches as the trainer would run them."""
    for step in range(steps):
        model.begin_step()
        model.training_step({"image": x[torch.randint(len(x), (batch,))]}, step)
        model.end_step()


FORMS = {
    "corrected": {"lr": 1e-3},
    "literal": {**X_G0, **SMALL},
    "wgan-gp": {**WGAN_GP, "lr": 2e-3, "critic_steps": 1},
    "sn": {"loss": "hinge", "spectral_norm": True, "r1": 0.0, "minibatch_std": False, "lr": 1e-3},
    "dense": {"network": "dense", "hidden": 64, "minibatch_std": False, "lr": 1e-3},
}


@pytest.mark.parametrize("form", FORMS)
def test_sixty_steps_stay_finite(form):
    """All forms run without a non-finite number; but for the literal one's, the mean image nears the data's."""
    model, x = build(**FORMS[form]), blobs(256, 16)
    model.enable_ema(0.9)
    before = float((model.sample(64).mean(0) - x.mean(0)).square().mean())
    train(model, x, 60, 32)
    assert all(torch.isfinite(torch.tensor(list(parts.values()))).all() for parts in model.seen)
    after = float((model.sample(64).mean(0) - x.mean(0)).square().mean())
    assert form == "literal" or after < 0.5 * before


def test_resuming_gives_the_same_weights():
    """Randomness of a step depends on the step alone: 2 + 2 steps equal 4 steps."""
    x = blobs(64, 16)
    whole, parts = build(), build()
    train(whole, x, 4, 8)
    train(parts, x, 2, 8)
    torch.manual_seed(12345)
    train(parts, x, 2, 8)
    for a, b in zip(whole.parameters(), parts.parameters()):
        assert torch.equal(a, b)
