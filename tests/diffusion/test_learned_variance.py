"""The hybrid loss: its value, where its gradients go, and that its optimum is the optimal variance."""

import math

import pytest
import torch

from verisim.diffusion.chain import step_nats, variances
from verisim.diffusion.learned_variance import denoise_with_variance, hybrid_loss
from verisim.diffusion.oracles import gaussian
from verisim.diffusion.parametrisation import PARAMETRISATIONS, Parametrisation
from verisim.diffusion.schedules import vp_cosine_table, vp_linear_table

TABLE = vp_linear_table()


def drawn(shape=(6, 1, 4, 4), steps=(0, 1, 5, 300, 800, 999)):
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(shape, generator=g, dtype=torch.float64).clamp(-1, 1) for _ in range(2))
    return x0, eps, TABLE[list(steps)]


def heads(f, number):
    """A network that answers with two given halves."""
    return lambda x_in, c_noise, label: torch.cat(
        [f * torch.ones_like(x_in), number * torch.ones_like(x_in)], 1
    )


@pytest.mark.parametrize("shape", [(6, 1), (6, 2, 3, 2), (6, 1, 2, 2, 2)])
@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_the_loss_is_its_formula(name, shape):
    """L_simple + lambda T L_{t-1}, the latter in bits per dimension, for every parametrisation in 1D to 3D."""
    p = Parametrisation(name, table=TABLE)
    x0, eps, sigma = drawn(shape)
    network = heads(0.3, -0.4)
    loss, bits = hybrid_loss(p, network, x0, eps, sigma, vlb_weight=0.002)
    simple = p.loss(lambda x, c, label: torch.full_like(x, 0.3), x0, eps, sigma)
    mean, v = denoise_with_variance(p, network, x0 + sigma.view(-1, *[1] * (len(shape) - 1)) * eps, sigma)
    assert float(v.min()) == float(v.max()) == 0.3
    sigmas = torch.cat([TABLE.flip(0), torch.zeros(1, dtype=torch.float64)])
    i = torch.tensor([999, 998, 994, 699, 199, 0])
    expected = step_nats(x0, mean, v, sigmas, i) / (x0[0].numel() * math.log(2))
    torch.testing.assert_close(bits, expected)
    torch.testing.assert_close(loss, simple + 0.002 * 1000 * expected)


def test_the_bound_cannot_move_the_mean():
    """Spec 003, section 2.2: dL_vlb / d(eps head) = 0, and its gradient reaches the variance head."""
    p = Parametrisation("epsilon", table=TABLE)
    x0, eps, sigma = drawn()
    f, number = (torch.full((), v, dtype=torch.float64, requires_grad=True) for v in (0.3, -0.4))
    _, bits = hybrid_loss(p, heads(f, number), x0, eps, sigma)
    grads = torch.autograd.grad(bits.sum(), (f, number), allow_unused=True)
    assert grads[0] is None or float(grads[0]) == 0
    assert float(grads[1]) != 0


@pytest.mark.parametrize("step", [2, 20, 200, 700])
def test_minimising_the_bound_finds_the_optimal_variance(step):
    """For N(0, d^2) the v where E L is least is that of s^2 (1 - r) + (1 - r)^2 Var[x0 | x_t] (KL(q || p))."""
    d = 0.5
    t, s = float(TABLE[step]), float(TABLE[step - 1])
    r = (s / t) ** 2
    optimum = s**2 * (1 - r) + (1 - r) ** 2 * (d * t) ** 2 / (d**2 + t**2)
    sigmas = torch.cat([TABLE.flip(0), torch.zeros(1, dtype=torch.float64)])
    i = torch.full((4,), 999 - step)
    lower, upper = (float(part[999 - step]) for part in variances(sigmas))
    x = d * torch.tensor([1.0, 1, -1, -1], dtype=torch.float64)[:, None]
    noise = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)[:, None]
    x0 = gaussian(0.0, d).denoise(x + t * noise, torch.full((4,), t, dtype=torch.float64))
    v = torch.linspace(-0.2, 1.2, 2801, dtype=torch.float64)
    k = len(v)
    every = step_nats(x.repeat(k, 1), x0.repeat(k, 1), v.repeat_interleave(4)[:, None], sigmas, i.repeat(k))
    losses = every.view(k, 4).mean(1)
    best = float(v[losses.argmin()])
    assert best == pytest.approx((math.log(optimum) - lower) / (upper - lower), abs=1e-3)


def test_float32_training_stays_finite_at_every_step_of_every_table():
    """The loss of a fresh network (answers 0) at all 1000 levels, first and last included, in float32."""
    for table in (TABLE, vp_cosine_table()):
        p = Parametrisation("epsilon", table=table)
        x0 = torch.zeros(1000, 1, 2, 2)
        loss, bits = hybrid_loss(p, heads(0.0, 0.0), x0, torch.ones_like(x0), table.float())
        assert loss.dtype == torch.float32 and torch.isfinite(loss).all() and torch.isfinite(bits).all()
