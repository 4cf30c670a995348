"""The hierarchical VAE: its bound by hand, its groups, its roles, and a short training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from verisim.data.spec import ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.models.autoencoders.hierarchical_vae import HierarchicalVAE
from verisim.roles import Autoencoder, Coder, LatentSpace, Likelihood, Sampler

TINY = {"width": 8, "max_width": 16, "maps": 2, "embed": 4}
SIDE = 16


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(model: HierarchicalVAE, seed: int = 1) -> HierarchicalVAE:
    """The model with random numbers in place of the zeros that its heads and branches start from."""
    g = seeded(seed)
    with torch.no_grad():
        for p in model.net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model


def made(size=(SIDE, SIDE), classes=0, channels=1, **settings) -> HierarchicalVAE:
    torch.manual_seed(0)
    return shaken(HierarchicalVAE(ImageSpec(size, channels), classes, **{**TINY, **settings}))


def images(n: int = 4, size=(SIDE, SIDE), channels: int = 1) -> Tensor:
    return torch.rand(n, channels, *size, generator=seeded(3)) * 2 - 1


def by_hand(model: HierarchicalVAE, x: Tensor, eps: Tensor) -> tuple[Tensor, list[Tensor]]:
    """-log p(x | z) and the KL of each group, (B,), from Gaussians over z itself, not relative to the prior."""
    net = model.net
    emb = net.embedding(torch.zeros(len(x), dtype=torch.long))
    features, noise = net.features(x, emb), iter(net.split(eps))
    h, kls = net.begin(net.constant.expand(len(x), -1, -1, -1), emb), []
    for i, groups in enumerate(net.levels):
        h = net.ups[i - 1](h, emb) if i else h
        for group in groups:
            p, relative = group.given(h), group.infer(h, features[i], emb)
            std = (0.5 * p.log_variance).exp()
            mine = Normal(p.mean, std)  # p(z_l | z_<l)
            q = Normal(p.mean + std * relative.mean, std * (0.5 * relative.log_variance).exp())
            kls.append(kl_divergence(q, mine).flatten(1).sum(1))
            z = q.loc + q.scale * next(noise)
            h = group.block(h + group.inject(z), emb)
    return net.observation.nll(net.last(h), x), kls


@pytest.mark.parametrize("groups", [(1,), (2, 1), (0, 0, 1)])
def test_loss_is_the_negative_elbo_by_hand(groups):
    """For one group (a plain VAE with a learned prior), for several, for a fine one alone; parts sum to the total.

    Control: without the learned prior, as if p(z_l) were N(0, I), the KL is another one.
    """
    size = (32, 32) if len(groups) == 3 else (16, 16)
    model, x = made(size, groups=groups, kl_warmup=10), images(size=size)
    model.net.eval()
    for step, weight in ((1, 0.2), (50, 1.0)):
        model.step = step
        torch.manual_seed(5)
        loss, parts = model.training_loss(x, None)
        torch.manual_seed(5)
        nll, kls = by_hand(model, x, torch.randn(len(x), model.latent))
        torch.testing.assert_close(loss, (nll + weight * sum(kls)) / model.spec.dims, rtol=1e-4, atol=1e-5)
        assert len(kls) == sum(groups) == len([k for k in parts if k.startswith("kl_")])
        for i, kl in enumerate(kls):
            torch.testing.assert_close(parts[f"kl_{i}"], kl, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sum(parts[f"kl_{i}"] for i in range(len(kls))), parts["kl"])
    with torch.no_grad():
        for group in (g for level in model.net.levels for g in level):
            group.prior[-1].bias.add_(1.0)  # control: the KL is to the learned prior, not to N(0, I)
    torch.manual_seed(5)
    moved = model.training_loss(x, None)[0]
    assert float((moved - loss).detach().abs().max()) > 1e-3
    torch.manual_seed(5)
    nll, kls = by_hand(model, x, torch.randn(len(x), model.latent))
    torch.testing.assert_close(moved, (nll + sum(kls)) / model.spec.dims, rtol=1e-4, atol=1e-5)


def test_bits_are_the_elbo_in_bits_and_tighten():
    """K = 1 by hand with densities over z; more samples lower the bound; the same generator, the same bits."""
    model, x = made(), images(6)
    model.configure_sampling(importance_samples=1)
    model.net.eval()
    got = model.bits_per_dim(x, generator=seeded(7))
    eps = torch.randn(6, model.latent, generator=seeded(7))
    with torch.no_grad():
        out, q, v = model.net.infer(x, model.groups(6, None), eps)
        log_px = model.net.observation.log_prob(out, x)
        ratio = Normal(0.0, 1.0).log_prob(v).sum(1) - Normal(q.mean, (0.5 * q.log_variance).exp()).log_prob(
            v
        ).sum(1)
    torch.testing.assert_close(got, -(log_px + ratio) / (SIDE**2 * math.log(2)), rtol=1e-5, atol=1e-6)
    model.configure_sampling(importance_samples=30)
    assert float(model.bits_per_dim(x, generator=seeded(7)).mean()) < float(got.mean())
    assert model.likelihood_is_bound
    model.configure_sampling(importance_samples=0)
    with pytest.raises(VerisimError, match="importance_samples=0"):
        model.bits_per_dim(x)


def test_a_group_hears_those_above_and_not_those_below():
    """p(z_l | z_<l): a change of the finest group leaves what coarser groups were given, and not the other way round."""
    model = made(groups=(1, 1))
    v = torch.randn(1, model.latent, generator=seeded(1))
    seen: list[Tensor] = []

    def given(v: Tensor) -> list[Tensor]:
        seen.clear()
        parts = iter(model.net.split(v))

        def draw(group: nn.Module, level: int, h: Tensor) -> Tensor:
            seen.append(group.given(h).mean.detach().clone())
            return next(parts)

        model.net.walk(model.net.embedding(torch.zeros(1, dtype=torch.long)), draw)
        return list(seen)

    coarse, fine = v.clone(), v.clone()
    coarse[:, 0] += 1
    fine[:, -1] += 1
    before = given(v)
    assert torch.equal(given(fine)[0], before[0]) and torch.equal(given(fine)[1], before[1])
    assert torch.equal(given(coarse)[0], before[0]) and not torch.equal(given(coarse)[1], before[1])


def test_counts_and_starts():
    """Latents of 32 pixels with one group per resolution: 2 maps of 4, 8 and 16 squared; at first KL = 0 everywhere."""
    torch.manual_seed(0)
    model = HierarchicalVAE(ImageSpec((32, 32)), **TINY)
    assert model.net.counts == [32, 128, 512] and model.latent == 672
    x = images(size=(32, 32))
    assert float(model.training_loss(x, None)[1]["kl"].detach().abs().max()) == 0
    assert float(model.rate_bits(x).max()) == 0
    assert float(made((32, 32)).rate_bits(x).min()) > 0


def test_log_variances_are_clamped():
    """A head gone wild cannot overflow exp(): its log variances stay at 8, and the step counts them."""
    model = made(groups=(1,))
    with torch.no_grad():
        model.net.levels[0][0].posterior[-1].bias.fill_(1e4)
        model.net.levels[0][0].posterior[-1].weight.zero_()
    eps = torch.zeros(4, model.latent)
    _, q, _ = model.net.infer(images(), model.groups(4, None), eps)
    assert float(q.log_variance.max()) == 8 and int(q.clamped[0]) == model.latent


@pytest.mark.parametrize("size", [(30, 30), (33, 17), (8, 8), (9, 10, 11), (16, 8, 8)])
def test_any_size_goes_through(size):
    """2D and 3D, even and odd, several channels; all roles are played, but not that of flat Gaussian latents."""
    model, x = made(size, channels=2), images(3, size, 2)
    loss, _ = model.training_loss(x, None)
    assert loss.shape == (3,) and torch.isfinite(loss).all()
    z = model.encode(x)
    assert z.shape == (3, model.latent) and model.decode(z).shape == x.shape
    model.spec.check(model.sample(2, generator=seeded()))
    assert model.bits_per_dim(x, generator=seeded()).shape == (3,)
    assert all(isinstance(model, role) for role in (Sampler, Autoencoder, Coder, Likelihood))
    assert not isinstance(model, LatentSpace)


def test_classes_reach_images_and_bits():
    """Another class, another image of the same noise, and other bits; no class is a class of its own."""
    model, x = made(classes=3), images()
    pictures = [model.sample(2, c, seeded()) for c in (torch.tensor(0), torch.tensor(1), None)]
    assert all(not torch.equal(a, b) for a, b in ((pictures[0], pictures[1]), (pictures[1], pictures[2])))
    zeros, none = model.bits_per_dim(x, torch.tensor(0), seeded()), model.bits_per_dim(x, None, seeded())
    assert not torch.equal(zeros, none)
    assert not torch.equal(model.encode(x, torch.tensor(0)), model.encode(x, torch.tensor(1)))
    with pytest.raises(VerisimError, match=r"0\.\.\.2"):
        model.sample(1, torch.tensor(3))


def test_temperature_zero_is_one_image():
    """All noise scaled away leaves one image; a negative temperature is an error."""
    model = made()
    model.configure_sampling(temperature=0.0)
    a = model.sample(3, generator=seeded())
    torch.testing.assert_close(a, a[:1].expand_as(a))
    torch.testing.assert_close(a[:1], model.decode(torch.zeros(1, model.latent)))
    model.configure_sampling(temperature=-1.0)
    with pytest.raises(VerisimError, match="temperature -1"):
        model.sample(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": (1, 1, 1)}, r"groups=\[1, 1, 1\].*at most 2 resolutions"),
        ({"groups": (0, 0)}, "at least one group"),
        ({"maps": 0}, "1 map or more"),
        ({"likelihood": "sigmoid"}, "Unknown likelihood"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(VerisimError, match=message):
        made(**settings)


def test_bad_input_is_named():
    """Another range and another number of latents; bits of cross-entropy do not exist."""
    model = made(groups=(1,))
    with pytest.raises(RangeError, match="values in"):
        model.encode(torch.full((2, 1, SIDE, SIDE), 255.0))
    with pytest.raises(VerisimError, match=r"\(2, 5\).*\(B, 32\)"):
        model.decode(torch.zeros(2, 5))
    with pytest.raises(VerisimError, match="not defined for likelihood 'bce'"):
        made(groups=(1,), likelihood="bce").bits_per_dim(images())


def spots(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright spot on black, left (class 0) or right (class 1), (n, 1, 16, 16), and its class (n,)."""
    g = seeded(seed)
    label = torch.randint(2, (n,), generator=g)
    r = torch.linspace(-1, 1, SIDE)
    x, y = (
        (label - 0.5)[:, None, None] + 0.2 * torch.rand(n, 1, 1, generator=g),
        torch.rand(n, 1, 1, generator=g) - 0.5,
    )
    square = (r[None, :, None] - y) ** 2 + (r[None, None] - x) ** 2
    noise = 0.1 * torch.randn(n, SIDE, SIDE, generator=g)
    return (2 * torch.exp(-square / 0.08) - 0.8 + noise).clamp(-1, 1)[:, None], label


def test_training_beats_the_baseline_and_hears_the_class():
    """Held-out spots: fewer bits than independent pixels of the training images' own histogram; classes go left and right."""
    (x, label), (test, _) = spots(384, 0), spots(64, 1)
    torch.manual_seed(0)
    model = HierarchicalVAE(ImageSpec((SIDE, SIDE)), 2, **{**TINY, "width": 16, "kl_warmup": 30, "lr": 2e-3})
    model.enable_ema(0.95)
    optimizer = model.optimizer()
    for _ in range(90):
        model.begin_step()
        take = torch.randint(len(x), (32,))
        loss, _ = model.training_loss(x[take], label[take])
        optimizer.zero_grad()
        loss.mean().backward()
        nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
        optimizer.step()
        model.end_step()
    model.finalise(x, label)
    level = ((x + 1) * 127.5).round().long()  # (N, 1, 16, 16)
    counts = torch.stack([(level == k).float().sum(0) for k in range(256)]) + 1 / 256  # (256, 1, 16, 16)
    own = ((test + 1) * 127.5).round().long()
    baseline = float(-(counts / counts.sum(0)).log2().gather(0, own).mean())
    bits = float(model.bits_per_dim(test, generator=seeded()).mean())
    assert bits < baseline - 0.3, (bits, baseline)
    left, right = (model.sample(16, torch.tensor(c), seeded(2)) for c in (0, 1))
    half = SIDE // 2
    assert float(left[..., :half].mean() - left[..., half:].mean()) > 0.1
    assert float(right[..., half:].mean() - right[..., :half].mean()) > 0.1
    control = float((x.mean(0) - test).square().mean())
    assert float((model.decode(model.encode(test)) - test).square().mean()) < 0.3 * control
