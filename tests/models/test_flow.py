"""The flow: inverse, Jacobian, density that integrates to one, bits per dimension, and a short training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.models.flows.flow import Flow, centred, dequantised, uncentred
from verisim.models.flows.layers import (
    ActNorm,
    Coupling,
    FlowStep,
    Rotation,
    Split,
    Top,
    squeeze,
    unsqueeze,
)
from verisim.models.flows.network import FlowNet
from verisim.roles import Autoencoder, Coder, Likelihood, Sampler

TINY = {"levels": 2, "steps": 2, "hidden": 8, "embed": 4}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: nn.Module, size: float = 0.2) -> nn.Module:
    """The module with random numbers added to its weights: nothing is the identity any more."""
    g = seeded(9)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=g))
    return module


def made(size=(8, 8), classes=0, channels=1, **settings) -> Flow:
    torch.manual_seed(0)
    model = Flow(ImageSpec(size, channels), classes, **{**TINY, **settings})
    shaken(model.net)
    return model


def images(n: int = 4, size=(8, 8), channels: int = 1, seed: int = 3) -> Tensor:
    return torch.rand(n, channels, *size, generator=seeded(seed)) * 2 - 1


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
def test_squeeze_keeps_neighbours_together_and_comes_back(size):
    """Each block of 2^n pixels becomes the 2^n channels of one position; unsqueeze undoes it exactly."""
    x = torch.arange(3 * 2 * math.prod(size), dtype=torch.float32).view(3, 2, *size)
    y = squeeze(x)
    n = len(size)
    assert y.shape == (3, 2 * 2**n, *[s // 2 for s in size])
    block = x[(0, 1, *[slice(0, 2)] * n)].flatten()
    assert torch.equal(y[(0, slice(2**n, None), *[0] * n)], block)
    assert torch.equal(unsqueeze(y), x)


LAYERS = {
    "norm": lambda dims: ActNorm(4),
    "mix": lambda dims: Rotation(4),
    "coupling": lambda dims: Coupling(dims, 4, 6, 3),
    "step": lambda dims: FlowStep(dims, 4, 6, 3),
    "top": lambda dims: Top(4, 3),
}


def jacobian_log_det(f, x: Tensor) -> Tensor:
    """log|det df/dx| of a map of one image, by autograd."""
    n = x.numel()
    found = torch.autograd.functional.jacobian(f, x).reshape(n, n)
    return torch.linalg.slogdet(found).logabsdet


@pytest.mark.parametrize("name", sorted(LAYERS))
@pytest.mark.parametrize("size", [(2, 3), (2, 1, 2)])
def test_every_layer_is_inverted_and_knows_its_jacobian(name, size):
    """In float64, 2D and 3D: inverse to 1e-10, log|det| to 1e-10 of autograd's. Control: it is not 0."""
    torch.manual_seed(0)
    layer = shaken(LAYERS[name](len(size))).double()
    x, emb = (
        torch.randn(1, 4, *size, generator=seeded()).double(),
        torch.randn(1, 3, generator=seeded(1)).double(),
    )
    y, log_det = layer(x, emb)
    torch.testing.assert_close(layer.inverse(y, emb), x, rtol=0, atol=1e-10)
    want = jacobian_log_det(lambda t: layer(t, emb)[0], x)
    torch.testing.assert_close(log_det.flatten()[0], want, rtol=0, atol=1e-10)
    assert (abs(float(want)) > 1e-3) == (name != "mix")  # a rotation keeps volumes


def test_split_is_inverted_and_knows_its_jacobian():
    """What leaves is whitened by what stays; both together are the input."""
    split = shaken(Split(2, 4)).double()
    x = torch.randn(1, 4, 2, 3, generator=seeded()).double()
    a, v, log_det = split(x)
    torch.testing.assert_close(split.inverse(a, v), x, rtol=0, atol=1e-10)
    want = jacobian_log_det(lambda t: torch.cat(split(t)[:2], dim=1), x)
    torch.testing.assert_close(log_det[0], want, rtol=0, atol=1e-10)


def test_mixing_is_a_rotation_and_stays_one():
    """W W^T = I at the start and after any training, to float32's rounding; training does turn it."""
    torch.manual_seed(0)
    mix = Rotation(12)
    before = mix.matrix()
    after = shaken(mix, 1.0).matrix()
    for w in (before, after):
        torch.testing.assert_close(w @ w.T, torch.eye(12), rtol=0, atol=1e-5)
    assert float((before - after).detach().abs().max()) > 0.5


def test_scales_are_bounded():
    """A coupling's network gone wild multiplies by e at most."""
    coupling = Coupling(2, 4, 6, 3)
    with torch.no_grad():
        coupling.last.bias.fill_(1e6)
    assert float(coupling.terms(torch.randn(1, 2, 4, 4), torch.zeros(1, 3))[1].detach().max()) == 1


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "channels"), [((4, 4), 1), ((8, 4), 2), ((4, 4, 4), 1)])
def test_the_jacobian_is_exact(size, channels):
    """log|det dv/dt| of the whole flow against autograd's Jacobian; control: another class has another one."""
    torch.manual_seed(0)
    net = shaken(FlowNet(ImageSpec(size, channels), 2, 2, 6, 1, 3)).double()
    t = torch.randn(1, channels, *size, generator=seeded()).double()
    log_dets = []
    for c in (0, 1):
        group = torch.tensor([c])
        v, log_det = net(t, group)
        want = jacobian_log_det(lambda t, g=group: net(t, g)[0], t)
        torch.testing.assert_close(log_det[0], want, rtol=0, atol=1e-8)
        torch.testing.assert_close(net.inverse(v, group), t, rtol=0, atol=1e-8)
        log_dets.append(float(log_det.detach()))
    assert abs(log_dets[0] - log_dets[1]) > 1e-3


@pytest.mark.parametrize(("size", "levels"), [((16, 16), 3), ((32, 16), 2), ((8, 8, 8), 3)])
def test_encode_and_decode_are_inverse(size, levels):
    """float32 as trained: images come back within 1e-5, latents too where they decode inside the range."""
    torch.manual_seed(0)
    model = Flow(ImageSpec(size), **{**TINY, "levels": levels, "steps": 4})
    shaken(model.net, 0.05)
    model.prepare(images(32, size))
    x = images(3, size)
    z = model.encode(x)
    assert z.shape == (3, model.spec.dims)
    torch.testing.assert_close(model.decode(z), x, rtol=0, atol=1e-5)
    again = model.encode(model.decode(z))
    torch.testing.assert_close(again, z, rtol=0, atol=1e-3)
    assert float((model.decode(z + 0.1) - x).abs().max()) > 1e-3  # control: other latents, another image


def test_the_density_integrates_to_one():
    """Over all values of 2x2 pixels, by importance sampling from a wide normal: 1 within 4 standard errors.

    Control: without the Jacobian it does not.
    """
    torch.manual_seed(0)
    net = shaken(FlowNet(ImageSpec((2, 2)), 1, 3, 8, 0, 3)).double()
    n, g = 60000, seeded()
    with torch.no_grad():
        some = net.inverse(torch.randn(2000, 4, generator=g, dtype=torch.float64), torch.zeros(2000).long())
        wide = torch.distributions.Normal(some.mean(0), 1.5 * some.std(0))
        t = wide.loc + wide.scale * torch.randn(n, 1, 2, 2, generator=g, dtype=torch.float64)
        v, log_det = net(t, torch.zeros(n).long())
    normal = -0.5 * (v.square() + math.log(2 * math.pi)).sum(1)
    proposal = wide.log_prob(t).flatten(1).sum(1)
    weight = (normal + log_det - proposal).exp()
    error = float(weight.std()) / n**0.5
    assert error < 0.02 and abs(float(weight.mean()) - 1) < 4 * error
    assert abs(float((normal - proposal).exp().mean()) - 1) > 0.2


def test_the_density_integrates_to_one_on_a_grid():
    """Two pixels' worth: a step on 2 channels at one position, its density summed over a fine grid of the plane."""
    torch.manual_seed(0)
    step = shaken(FlowStep(2, 2, 6, 3), 0.3).double()
    r = torch.linspace(-12, 12, 241, dtype=torch.float64)
    t = torch.stack(torch.meshgrid(r, r, indexing="ij"), dim=-1).view(-1, 2, 1, 1)
    with torch.no_grad():
        v, log_det = step(t, torch.zeros(1, 3).double())
    p = (-0.5 * (v.square() + math.log(2 * math.pi)).flatten(1).sum(1) + log_det).exp()
    area = float(r[1] - r[0]) ** 2
    assert float(p.sum()) * area == pytest.approx(1, abs=1e-4)
    assert abs(float((p * (-log_det).exp()).sum()) * area - 1) > 0.05  # control: no Jacobian


def test_grey_values_become_numbers_and_come_back():
    """t covers [-1, 1); floor and round agree on the grey value; rounding first, as an 8-bit file does."""
    k = torch.arange(256).view(256, 1, 1, 1)
    x = k * 2 / 255 - 1
    u = torch.rand(x.shape, generator=seeded())
    t = dequantised(x, u)
    assert float(t.min()) >= -1 and float(t.max()) < 1
    assert torch.equal(((t + 1) * 128).floor().long(), k)
    assert torch.equal(((uncentred(t) + 1) * 127.5).round().long(), k)
    torch.testing.assert_close(uncentred(centred(x)), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(dequantised(x + 0.3 / 127.5, u), t)


def test_bits_are_the_density_in_bits():
    """By hand from log_density; of a flow that is the identity on uniform noise, from the normal's own formula."""
    model, x = made(), images()
    got = model.bits_per_dim(x, generator=seeded(5))
    t = dequantised(x, torch.rand(x.shape, generator=seeded(5)))
    want = -(model.log_density(t) - 64 * math.log(128)) / (64 * math.log(2))
    torch.testing.assert_close(got, want)
    torch.manual_seed(0)
    plain = Flow(ImageSpec((8, 8)), **TINY)  # rotations only: log p(t) = log N(t; 0, I)
    own = torch.distributions.Normal(0.0, 1.0).log_prob(t.double()).flatten(1).sum(1)
    torch.testing.assert_close(plain.log_density(t), own, rtol=0, atol=1e-3)
    assert model.likelihood_is_bound


def test_more_draws_tighten_the_bound():
    """Bits of K draws are -log2 of their mean density: never above the mean of the K bits (Jensen), here below it.

    What the loss is in training is one draw's.
    """
    model, x = made(), images(16)
    g = seeded(5)
    single = torch.stack([model.bits_per_dim(x, generator=g) for _ in range(10)])  # (10, 16)
    model.configure_sampling(dequantisations=10)
    found = model.bits_per_dim(x, generator=seeded(5))
    nats = single * 64 * math.log(2)
    torch.testing.assert_close(found, -((-nats).logsumexp(0) - math.log(10)) / (64 * math.log(2)))
    assert bool((found < single.mean(0)).all()) and bool((found > single.amin(0)).all())
    torch.manual_seed(6)
    loss, parts = model.training_loss(x, None)
    torch.manual_seed(6)
    t = dequantised(x, torch.rand_like(x))
    want = -model.log_density(t) / (64 * math.log(2)) + 7
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
    assert set(parts) == {"bits_per_dim", "log_det", "v_square"}
    model.configure_sampling(dequantisations=0)
    with pytest.raises(VerisimError, match="dequantisations=0"):
        model.bits_per_dim(x)


def test_norms_start_from_the_data():
    """After prepare the latents of training images have mean 0 and variance 1; the same again; control: not before."""
    x = 0.2 * images(64, (16, 16)) - 0.5
    torch.manual_seed(0)
    model = Flow(ImageSpec((16, 16)), **TINY)
    torch.manual_seed(0)
    again = Flow(ImageSpec((16, 16)), **TINY)
    before = model.encode(x)
    state = torch.get_rng_state()
    model.prepare(x)
    again.prepare(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    z = model.encode(x)
    assert abs(float(z.mean())) < 0.05 and float(z.var()) == pytest.approx(1, abs=0.1)
    assert abs(float(before.var()) - 1) > 0.5


def test_samples_are_decoded_normals():
    """v ~ T N(0, I), decoded; with temperature 0 one image; all roles are played."""
    model = made()
    v = torch.randn(3, 64, generator=seeded(4))
    assert torch.equal(model.sample(3, generator=seeded(4)), model.decode(v))
    model.configure_sampling(temperature=0.5)
    assert torch.equal(model.sample(3, generator=seeded(4)), model.decode(0.5 * v))
    model.spec.check(model.sample(20, generator=seeded(4)))
    model.configure_sampling(temperature=-1.0)
    with pytest.raises(VerisimError, match="temperature -1"):
        model.sample(1)
    assert all(isinstance(model, role) for role in (Sampler, Autoencoder, Likelihood))
    assert not isinstance(model, Coder)


@pytest.mark.parametrize(
    ("size", "settings", "message"),
    [
        ((30, 33), {"levels": 3}, "30x33 pixels are not multiples of 8.*Nearest: 32x32"),
        ((8, 8), {"levels": 0}, "levels=0"),
        ((8,), {}, "2 or 3 axes"),
        ((8, 8), {"steps": 0}, "steps=0"),
    ],
)
def test_bad_settings_are_named(size, settings, message):
    with pytest.raises(VerisimError, match=message):
        made(size, **settings)


def test_bad_input_is_named():
    """Another range and another number of latents."""
    model = made()
    with pytest.raises(RangeError, match="values in"):
        model.encode(torch.full((2, 1, 8, 8), 255.0))
    with pytest.raises(VerisimError, match=r"\(2, 5\).*\(B, 64\)"):
        model.decode(torch.zeros(2, 5))


def test_autocast_changes_nothing():
    """Half precision would undo the inverse: the flow computes in float32 all the same."""
    model, x = made(), images()
    torch.manual_seed(0)
    want = model.training_loss(x, None)[0]
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.training_loss(x, None)[0]
    assert found.dtype == torch.float32 and torch.equal(found, want)


def halves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8), bright above (class 0) or below (class 1), with smooth noise, and their class."""
    g = seeded(seed)
    label = torch.randint(2, (n,), generator=g)
    step = torch.where(torch.arange(8) < 4, 0.5, -0.5).view(1, 1, 8, 1)
    sign = (1 - 2.0 * label).view(-1, 1, 1, 1)
    smooth = nn.functional.interpolate(torch.randn(n, 1, 2, 2, generator=g), size=8, mode="bilinear")
    return (sign * step + 0.1 * smooth + 0.02 * torch.randn(n, 1, 8, 8, generator=g)).clamp(-1, 1), label


def test_training_beats_the_best_independent_normals():
    """Held-out images: fewer bits than a Gaussian fitted to every pixel; samples of a class have its bright half."""
    (x, label), (test, _) = halves(512, 0), halves(128, 1)
    torch.manual_seed(0)
    model = Flow(ImageSpec((8, 8)), 2, **{**TINY, "steps": 3, "hidden": 16, "lr": 3e-3})
    model.enable_ema(0.95)
    model.prepare(x)
    optimizer = model.optimizer()
    for _ in range(100):
        model.begin_step()
        take = torch.randint(len(x), (64,))
        loss, _ = model.training_loss(x[take], label[take])
        optimizer.zero_grad()
        loss.mean().backward()
        nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
        optimizer.step()
        model.end_step()
    t = dequantised(x, torch.rand(x.shape, generator=seeded(2)))
    pixels = torch.distributions.Normal(t.mean(0), t.std(0))
    own = dequantised(test, torch.rand(test.shape, generator=seeded(3)))
    baseline = float(-pixels.log_prob(own).mean() / math.log(2)) + 7
    bits = float(model.bits_per_dim(test, None, seeded()).mean())
    assert bits < baseline - 1, (bits, baseline)
    above, below = (model.sample(32, torch.tensor(c), seeded(2)) for c in (0, 1))
    assert float((above[:, :, :4] - above[:, :, 4:]).mean()) > 0.3
    assert float((below[:, :, 4:] - below[:, :, :4]).mean()) > 0.3
