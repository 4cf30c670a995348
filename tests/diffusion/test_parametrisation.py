"""Parametrisations: with a perfect network each is a perfect denoiser, and the weights are the papers'."""

import math

import pytest
import torch

from verisim.diffusion.parametrisation import PARAMETRISATIONS, Parametrisation, step_number
from verisim.diffusion.schedules import vp_cosine_table, vp_linear_table
from verisim.errors import VerisimError

SIGMA = torch.tensor([0.01, 0.3, 1.0, 20.0, 150.0], dtype=torch.float64)


def noisy(shape=(5, 2, 4, 4)):
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(shape, generator=g, dtype=torch.float64)
    eps = torch.randn(shape, generator=g, dtype=torch.float64)
    return x0, eps, x0 + SIGMA.view(-1, *[1] * (len(shape) - 1)) * eps


@pytest.mark.parametrize("shape", [(5, 2, 4, 4), (5, 1, 3, 2, 4), (5, 1)])
@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_a_perfect_network_gives_back_x0(name, shape):
    """D(x) = x0 and loss 0 if the network answers its target: the two formulas are each other's inverse."""
    p = Parametrisation(name)
    x0, eps, x = noisy(shape)

    def perfect(x_in, c_noise, label):
        return p.target(x0, eps, SIGMA)

    torch.testing.assert_close(p.denoise(perfect, x, SIGMA), x0, rtol=1e-9, atol=1e-9)
    assert p.loss(perfect, x0, eps, SIGMA).abs().max() == 0


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_loss_is_the_weighted_error_of_x0(name):
    """Unit weight on F is 1 / c_out^2 on x0: Karras 2022, eq. 8 with lambda c_out^2 = 1."""
    p = Parametrisation(name)
    x0, eps, x = noisy()

    def network(x_in, c_noise, label):
        return torch.sin(3 * x_in)

    error = (p.denoise(network, x, SIGMA) - x0).square().flatten(1).mean(1)
    c = p.coefficients(SIGMA)
    torch.testing.assert_close(p.loss(network, x0, eps, SIGMA), error / c.c_out**2, rtol=1e-7, atol=1e-12)


def test_targets_are_what_their_names_say():
    """epsilon predicts eps, x0 predicts x0, v and velocity their definitions."""
    x0, eps, _ = noisy()
    s = SIGMA.view(-1, 1, 1, 1)
    alpha = (1 + s**2).rsqrt()
    expected = {"epsilon": eps, "x0": x0, "v": alpha * eps - alpha * s * x0, "flow": eps - x0}
    for name, target in expected.items():
        torch.testing.assert_close(Parametrisation(name).target(x0, eps, SIGMA), target)


def test_edm_identities():
    """Table 1 of Karras 2022: lambda c_out^2 = 1, unit variance of input and target, c_noise = ln(sigma)/4."""
    d = 0.5
    c = Parametrisation("edm", d).coefficients(SIGMA)
    lam = (SIGMA**2 + d**2) / (SIGMA * d) ** 2
    torch.testing.assert_close(lam * c.c_out**2, torch.ones_like(SIGMA))
    torch.testing.assert_close(c.c_in**2 * (d**2 + SIGMA**2), torch.ones_like(SIGMA))
    target_variance = ((1 - c.c_skip) ** 2 * d**2 + c.c_skip**2 * SIGMA**2) / c.c_out**2
    torch.testing.assert_close(target_variance, torch.ones_like(SIGMA))
    torch.testing.assert_close(c.c_noise, SIGMA.log() / 4)
    torch.testing.assert_close(c.c_data, 1 - c.c_skip)


def test_v_is_edm_of_unit_data():
    """v is EDM's preconditioning at sigma_data = 1 with the sign of F flipped."""
    a, b = Parametrisation("v").coefficients(SIGMA), Parametrisation("edm", 1.0).coefficients(SIGMA)
    torch.testing.assert_close(a.c_skip, b.c_skip)
    torch.testing.assert_close(a.c_out, -b.c_out)
    torch.testing.assert_close(a.c_in, b.c_in)


@pytest.mark.parametrize("table", [vp_linear_table(), vp_cosine_table()])
def test_step_numbers_invert_the_table(table):
    """The level of training step t is told to the network as t - 1, also after float32; outside is clamped."""
    steps = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(step_number(table, table), steps)
    torch.testing.assert_close(step_number(table.float().double(), table), steps, atol=2e-3, rtol=0)
    ends = step_number(torch.tensor([1e-6, 1e9], dtype=torch.float64), table)
    assert ends.tolist() == [0, 999]
    between = step_number((table[4] * table[5]).sqrt()[None], table)
    assert float(between) == pytest.approx(4.5)


def test_min_snr_weights():
    """Hang 2023: min(SNR, 5) / SNR for epsilon, min(SNR, 5) for x0, min(SNR, 5) / (SNR + 1) for v."""
    snr = SIGMA**-2
    clipped = snr.clamp(max=5)
    expected = {"epsilon": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}
    for name, weight in expected.items():
        torch.testing.assert_close(Parametrisation(name).weight(SIGMA, 5.0), weight)
    assert torch.equal(Parametrisation("v").weight(SIGMA), torch.ones_like(SIGMA))
    with pytest.raises(VerisimError, match="min_snr_gamma"):
        Parametrisation("v").weight(SIGMA, -1.0)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_float32_and_bfloat16_networks(name):
    """The state stays float32 whatever the network answers, and far noise levels stay finite."""
    p = Parametrisation(name)
    x = torch.randn(2, 1, 4, 4)
    out = p.denoise(lambda x_in, c, label: x_in.bfloat16(), x, torch.tensor([1e-4, 2e4]))
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


def test_unknown_names_and_constant_data():
    """Typing errors get a suggestion, data without spread a sentence."""
    with pytest.raises(VerisimError, match="Did you mean 'epsilon'"):
        Parametrisation("epsilom")
    with pytest.raises(VerisimError, match="Constant images"):
        Parametrisation("edm", sigma_data=0.0)
    assert math.isfinite(Parametrisation("edm").sigma_data)
