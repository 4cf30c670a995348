"""IntroVAE and Soft-IntroVAE: who is updated by which step, exact losses, warm-up, bad settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoencoders.intro_vae import IntroVAE
from verisim.models.autoencoders.likelihoods import squared_error
from verisim.models.autoencoders.soft_intro_vae import SoftIntroVAE

KINDS = {"hinge": (IntroVAE, {"margin": 20.0}), "soft": (SoftIntroVAE, {"negative": 8.0})}


def build(kind: str = "hinge", num_classes: int = 0, **settings) -> IntroVAE:
    """A model that steps without a Lightning trainer."""
    torch.manual_seed(0)
    make, own = KINDS[kind]
    common = {"latent": 4, "width": 8, "warmup_steps": 0, "beta": 0.5, "lr": 1e-2}
    model = make(ImageSpec((16, 16)), num_classes, **{**common, **own, **settings})
    model.manual_backward = lambda loss: loss.backward()
    optimizers = model.optimizer()
    model.optimizers = lambda: optimizers
    model.seen = []
    model.log_parts = lambda parts: model.seen.append(
        {k: float(v.detach().float().mean()) for k, v in parts.items()}
    )
    return model


def batch(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.rand(n, 1, 16, 16, generator=g) * 2 - 1
    return x, torch.arange(n) % 3, torch.randn(n, 4, generator=g)


def changed(model: IntroVAE, before: dict[str, Tensor]) -> set[str]:
    """Which of 'encoder', 'decoder', 'embedding', 'observation' hold other numbers now."""
    state = model.net.state_dict()
    return {k.split(".")[0] for k, v in state.items() if not torch.equal(v, before[k])}


def snapshot(model: IntroVAE) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.net.state_dict().items()}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_step_touches_only_its_own_network(kind):
    """Bit for bit: the encoder step moves the encoder alone, the decoder step decoder and embedding alone."""
    model = build(kind, num_classes=3)
    x, group, z_p = batch()
    optimizer_e, optimizer_g = model.optimizers()
    before = snapshot(model)
    _, z = model.encoder_step(x, group, z_p, optimizer_e)
    assert changed(model, before) == {"encoder"}
    assert all(p.grad is None for p in model.generator_parameters())
    model.net.zero_grad()
    before = snapshot(model)
    model.generator_step(x, group, z, z_p, optimizer_g)
    assert changed(model, before) == {"decoder", "embedding"}
    assert all(p.grad is None for p in model.net.encoder.parameters())
    assert all(p.requires_grad for p in model.net.parameters())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_without_freezing_the_steps_would_mix(kind, monkeypatch):
    """Negative control of the test above: with freezing switched off both losses reach both networks."""
    from contextlib import nullcontext

    import verisim.models.autoencoders.intro_vae as hinge
    import verisim.models.autoencoders.soft_intro_vae as soft

    for module in (hinge, soft):
        monkeypatch.setattr(module, "frozen", lambda *_: nullcontext())
    model = build(kind)
    x, _, z_p = batch()
    loss, _, z = model.encoder_loss(x, model.groups(6, None), z_p)
    loss.mean().backward()
    assert any(p.grad is not None for p in model.net.decoder.parameters())
    model.net.zero_grad()
    model.generator_loss(x, model.groups(6, None), z, z_p)[0].mean().backward()
    assert any(p.grad is not None for p in model.net.encoder.parameters())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_generator_hears_the_encoder(kind):
    """Gradients pass through the frozen encoder into the images: without alpha's terms they differ."""
    model = build(kind)
    x, _, z_p = batch()
    group, z = model.groups(6, None), torch.zeros(6, 4)
    model.generator_loss(x, group, z, z_p)[0].mean().backward()
    with_kl = [p.grad.clone() for p in model.net.decoder.parameters()]
    model.net.zero_grad()
    scale = 1 / 256 if kind == "soft" else 1.0
    (scale * 0.5 * squared_error(model.net.decode(z, group), x)).mean().backward()
    alone = [p.grad for p in model.net.decoder.parameters()]
    assert any(not torch.allclose(a, b) for a, b in zip(with_kl, alone))


def test_losses_are_those_of_the_paper():
    """Eq 4.15a and b by hand, both hinges under alpha; the printed line 9, one outside, is another number."""
    model = build(alpha=0.25)
    x, _, z_p = batch()
    group = model.groups(6, None)
    torch.manual_seed(7)
    loss, parts, z = model.encoder_loss(x, group, z_p)
    torch.manual_seed(7)
    q = model.net.encode(x)
    z_by_hand = q.draw()
    x_r, x_p = model.net.decode(z_by_hand, group), model.net.decode(z_p, group)
    kl_r, kl_p = model.net.encode(x_r).rate(), model.net.encode(x_p).rate()
    rec = ((x_r - x) / 2).square().flatten(1).sum(1)  # sum of squares on [0, 1]
    hinge_r, hinge_p = (20 - kl_r).clamp(min=0), (20 - kl_p).clamp(min=0)
    torch.testing.assert_close(z, z_by_hand)
    torch.testing.assert_close(loss, q.rate() + 0.25 * (hinge_r + hinge_p) + 0.5 * rec)
    printed = q.rate() + 0.25 * hinge_r + hinge_p + 0.5 * rec
    assert float((loss - printed).detach().abs().min()) > 0.1
    got, _ = model.generator_loss(x, group, z, z_p)
    torch.testing.assert_close(got, 0.25 * (kl_r + kl_p) + 0.5 * rec)
    torch.testing.assert_close(parts["mse"], (x_r - x).square().flatten(1).mean(1))


def test_without_alpha_it_is_a_vae():
    """alpha = 0, beta = 1: L_E is squared error + KL, the loss of the VAE with sigma fixed."""
    from verisim.models.autoencoders.conv_vae import ConvVAE

    model = build(alpha=0.0, beta=1.0)
    vae = ConvVAE(ImageSpec((16, 16)), latent=4, width=8, sigma="fixed", kl_warmup=0)
    vae.net.load_state_dict(model.net.state_dict() | {"observation.variance": torch.tensor(2.0)})
    x, _, z_p = batch()
    torch.manual_seed(5)
    loss, _, _ = model.encoder_loss(x, model.groups(6, None), z_p)
    torch.manual_seed(5)
    want, parts = vae.training_loss(x, None)
    constant = 0.5 * 256 * torch.log(torch.tensor(2 * torch.pi * 2.0))
    torch.testing.assert_close(loss, want * 256 - constant, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(loss, squared_error_of(parts) + parts["kl"], rtol=1e-4, atol=1e-3)


def squared_error_of(parts: dict[str, Tensor]) -> Tensor:
    """Sum of squares on [0, 1] of a 16x16 image from its mse on [-1, 1]; exact while nothing is clamped."""
    return parts["mse"] * 256 / 4


def test_soft_losses_by_hand():
    """Exponential of the scaled negative ELBO of both made images, a quarter each; decoder without exp."""
    model = build("soft", gamma=0.5)
    x, _, z_p = batch()
    group, s = model.groups(6, None), 1 / 256
    torch.manual_seed(7)
    loss, _, z = model.encoder_loss(x, group, z_p)
    torch.manual_seed(7)
    net = model.net
    q = net.encode(x)
    z_r = q.draw()
    made, want = [net.decode(z_r, group), net.decode(z_p, group)], None
    want = s * (0.5 * squared_error(made[0], x) + q.rate())
    for y in made:
        q_y = net.encode(y)
        f = 0.5 * squared_error(net.decode(q_y.draw(), group), y) + 8.0 * q_y.rate()
        want = want + 0.25 * torch.exp(-2 * s * f)
    torch.testing.assert_close(loss, want)
    torch.manual_seed(8)
    got, _ = model.generator_loss(x, group, z, z_p)
    torch.manual_seed(8)
    total = 0.5 * squared_error(made[0], x)
    for y in made:
        q_y = net.encode(y)
        total = total + 0.5 * (q_y.rate() + 0.5 * 0.5 * squared_error(net.decode(q_y.draw(), group), y))
    torch.testing.assert_close(got, s * total)


def test_warm_up_is_a_vae_and_measures():
    """Both networks move, no hinge is computed, and margin and beta come out as documented."""
    model = build(warmup_steps=2, margin=0.0, beta=0.0)
    x, _, _ = batch()
    before = snapshot(model)
    model.training_step({"image": x}, 0)
    assert {"encoder", "decoder"} <= changed(model, before)
    assert "kl_rec" not in model.seen[0]
    kl, error = model.seen[0]["kl"], model.seen[0]["mse"] * 256 / 4
    margin, beta = (float(v) for v in model.settled())
    assert margin == pytest.approx(kl + 1.5 * 4, rel=1e-5)
    assert beta == pytest.approx(0.5 * 256 / error, rel=1e-4)  # 1 / (2 sigma^2) on [0, 1]
    model.step = 2
    model.training_step({"image": x}, 0)
    assert "kl_rec" in model.seen[1] and tuple(map(float, model.settled())) == (margin, beta)


def test_what_was_measured_is_resumed():
    """The running means travel in the checkpoint's state, so a resumed run has the same margin."""
    model, other = build(warmup_steps=2, margin=0.0), build(warmup_steps=2, margin=0.0)
    model.training_step({"image": batch()[0]}, 0)
    assert float(model.settled()[0]) != float(other.settled()[0])
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.settled()[0], other.settled()[0])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_bad_batches_move_nothing_and_ten_stop_the_run(kind):
    """NaN images: no parameter moves; the tenth in a row is an error with remedies."""
    model = build(kind)
    before = snapshot(model)
    bad = {"image": torch.full((4, 1, 16, 16), torch.nan)}
    for _ in range(9):
        model.training_step(bad, 0)
        model.end_step()
    assert changed(model, before) == set() and model.skipped_in_a_row == 9
    model.training_step(bad, 0)
    with pytest.raises(VerisimError, match="ten steps in a row"):
        model.end_step()


def test_the_decoder_step_sees_the_moved_encoder_under_autocast():
    """bfloat16 copies of weights are cached within a step; the decoder's loss must not use stale ones."""
    model = build()
    x, _, z_p = batch()
    group = model.groups(6, None)
    with torch.autocast("cpu", torch.bfloat16):
        _, z = model.encoder_step(x, group, z_p, model.optimizers()[0])
        inside = model.generator_loss(x, group, z, z_p)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        fresh = model.generator_loss(x, group, z, z_p)[0].detach()
    torch.testing.assert_close(inside, fresh)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("hinge", {"margin": 0.0}, "warmup_steps=0 nothing is measured"),
        ("hinge", {"alpha": -1.0}, "alpha=-1"),
        ("soft", {"negative": 0.0}, "negative=0, gamma=1e-08: negative must be above 0"),
    ],
)
def test_impossible_settings_are_refused(kind, settings, message):
    """What, allowed, remedy."""
    with pytest.raises(VerisimError, match=message):
        build(kind, **settings)


@pytest.mark.parametrize(("kind", "off"), [("hinge", {"alpha": 0.0}), ("soft", {"negative": 1e-6})])
def test_the_two_players_pull_in_opposite_directions(kind, off):
    """Encoder steps raise the KL of prior samples, decoder steps lower it; without its term neither does."""
    x, _, z_p = batch(16)
    raised = {}
    for name, settings in (("on", {}), ("off", off)):
        model = build(kind, **settings)
        group = model.groups(16, None)
        optimizer_e, optimizer_g = model.optimizers()

        def kl(model=model, group=group) -> float:
            with torch.no_grad():
                return float(model.net.encode(model.net.decode(z_p, group)).rate().mean())

        start = kl()
        for _ in range(10):
            _, z = model.encoder_step(x, group, z_p, optimizer_e)
        middle = kl()
        for _ in range(10):
            model.generator_step(x, group, z, z_p, optimizer_g)
        raised[name] = middle - start
        if name == "on":
            assert middle > start + 2 and kl() < middle - 1
    assert raised["off"] < 0.5 * raised["on"]
