"""VPGA: which network each loss trains, in the reference routing and, as the contrast, as printed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.models.autoencoders.vpga import VPGA

LOSSES = ("rec", "lr_n", "lr_h", "vrec", "kl_loss")
TRAINS = {  # loss -> (encoder, decoder)
    "reference": {
        "rec": (True, True),
        "lr_n": (True, False),
        "lr_h": (True, False),
        "vrec": (True, True),
        "kl_loss": (True, False),
    },
    "literal": {
        "rec": (True, True),
        "lr_n": (True, True),
        "lr_h": (True, True),
        "vrec": (True, True),
        "kl_loss": (True, False),
    },
}


def build(routing: str = "reference", **settings) -> tuple[VPGA, Tensor, Tensor]:
    torch.manual_seed(0)
    model = VPGA(ImageSpec((16, 16)), latent=4, width=8, routing=routing, **settings)
    return model, torch.rand(6, 1, 16, 16) * 2 - 1, torch.zeros(6, dtype=torch.int64)


def gradients(model: VPGA, value: Tensor) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of value.mean() by parameter: encoder, decoder."""
    model.net.zero_grad()
    value.mean().backward(retain_graph=True)
    parts = (model.net.encoder, model.net.decoder)
    found = [[None if p.grad is None else p.grad.clone() for p in part.parameters()] for part in parts]
    return found[0], found[1]


def moved(grads: list[Tensor | None]) -> bool:
    return any(g is not None and float(g.abs().max()) > 0 for g in grads)


@pytest.mark.parametrize("routing", ["reference", "literal"])
@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_trains_the_networks_it_should(routing, name):
    """The table of the module's docstring; the literal form differs in L_lr,N and L_lr,H."""
    model, x, group = build(routing)
    encoder, decoder = gradients(model, model.losses(x, model.net.encode(x), group)[name])
    assert (moved(encoder), moved(decoder)) == TRAINS[routing][name]


def test_the_encoder_learns_from_vrec_through_sigma_only():
    """With sigma held constant no encoder gradient is left; the literal form has one from the outer pass."""
    for routing, left in (("reference", False), ("literal", True)):
        model, x, group = build(routing)
        q = model.net.encode(x)
        held = type(q)(q.mean, q.log_variance.detach(), q.clamped)
        assert moved(gradients(model, model.losses(x, held, group)["vrec"])[0]) is left


def test_vrec_reaches_sigma_but_not_mu():
    """d L_vrec / d mu = 0 and d L_vrec / d log variance is not, in the reference routing."""
    model, x, group = build()
    q = model.net.encode(x)
    loss = model.losses(x, q, group)["vrec"].mean()
    to_mean, to_variance = torch.autograd.grad(loss, (q.mean, q.log_variance), allow_unused=True)
    assert to_mean is None or float(to_mean.abs().max()) == 0
    assert float(to_variance.abs().max()) > 0


def test_the_outer_encoder_is_trained_again_afterwards():
    """Freezing lasts for one pass: all parameters still take gradients."""
    model, x, group = build()
    model.losses(x, model.net.encode(x), group)
    assert all(p.requires_grad for p in model.net.parameters())


def test_vrec_is_zero_without_noise_and_scale_free():
    """At sigma = 0 both reconstructions agree."""
    model, x, group = build()
    q = model.net.encode(x)
    still = type(q)(q.mean, torch.full_like(q.mean, -torch.inf), q.clamped)
    assert float(model.losses(x, still, group)["vrec"].detach().abs().max()) == 0


def test_loss_is_the_weighted_sum_of_means_or_sums():
    """L = L_rec + alpha L_lr,N + beta L_lr,H + eta L_vrec + eta_kl L_kl, by hand."""
    for routing in ("reference", "literal"):
        model, x, _ = build(routing, alpha=0.2, beta=0.3, eta=0.4, eta_kl=0.5)
        loss, parts = model.training_loss(x, None)
        want = sum(w * parts[name] for name, w in zip(LOSSES, (1, 0.2, 0.3, 0.4, 0.5)))
        torch.testing.assert_close(loss, want)
        per_dim = 1 if routing == "literal" else 4
        torch.testing.assert_close(parts["kl_loss"], parts["kl"] / per_dim)
        assert model.options.prior == "normal"


def test_distortion_is_on_one_scale_in_both_forms():
    """The mse logged is the mean squared error of the image, whatever the loss sums."""
    model, x, group = build("literal")
    torch.manual_seed(1)
    _, parts = model.training_loss(x, None)
    torch.manual_seed(1)
    out = model.net.decode(model.net.encode(x).draw(), group)
    torch.testing.assert_close(parts["mse"], (out - x).square().flatten(1).mean(1))
