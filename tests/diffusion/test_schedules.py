"""Noise schedules: every one at every number of steps is a schedule; the tables are the literature's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verisim.diffusion.schedules import (
    SCHEDULES,
    angle,
    check_sigmas,
    flow,
    karras,
    make_sigmas,
    shifted,
    vp_cosine_table,
    vp_linear,
    vp_linear_table,
)
from verisim.errors import VerisimError


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_number_of_steps_gives_a_schedule(name):
    """Peers' grids repeat a level at n = T (NaN) or run out of range; none of 1...1000 may."""
    for n in range(1, 1001):
        sigmas = SCHEDULES[name](n)
        assert sigmas.dtype == torch.float64
        assert sigmas.shape == (n + 1,)
        check_sigmas(sigmas)


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine"])
def test_more_steps_than_training_steps_is_refused(name):
    """A training grid has no 1001st level; the message says what has."""
    with pytest.raises(VerisimError, match=r"1001 steps.*1\.\.\.1000 are possible.*karras"):
        SCHEDULES[name](1001)


@pytest.mark.parametrize("name", ["karras", "angle", "flow", "shifted"])
def test_continuous_schedules_have_no_upper_limit(name):
    """1001 or 5000 steps are as good as 1000 where a formula gives the levels."""
    assert len(SCHEDULES[name](1001)) == 1002
    assert len(SCHEDULES[name](5000)) == 5001


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [0, -1, 2.0, True, "5"])
def test_bad_step_counts_are_refused(name, n):
    """Zero, negative, fractional and non-numbers get one clear sentence."""
    with pytest.raises(VerisimError, match="whole number of at least 1"):
        SCHEDULES[name](n)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        (torch.tensor([1.0, 0.0]), "float64"),
        ([1.0, 0.0], "got list"),
        (torch.tensor([0.0], dtype=torch.float64), "at least one step"),
        (torch.tensor([math.nan, 0.0], dtype=torch.float64), "finite"),
        (torch.tensor([1.0, 0.1], dtype=torch.float64), "ends in 0.1"),
        (torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), "level 0 is 1 and level 1 is 1"),
        (torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64), "decrease strictly"),
    ],
)
def test_what_is_no_schedule_is_named(sigmas, message):
    """One place checks all schedules and says what is wrong."""
    with pytest.raises(VerisimError, match=message):
        check_sigmas(sigmas)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"sigma_max": 0.002, "sigma_min": 0.002},
        {"sigma_min": 0.0},
        {"sigma_max": math.inf},
        {"sigma_min": 90.0},
    ],
)
def test_an_empty_noise_range_is_refused(kwargs):
    """sigma_min = sigma_max would repeat a level."""
    with pytest.raises(VerisimError, match="0 < sigma_min < sigma_max"):
        karras(10, **kwargs)


@pytest.mark.parametrize("schedule", [karras, angle, flow, shifted])
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_constant_data_are_refused(schedule, scale):
    """No noise range fits data without spread."""
    with pytest.raises(VerisimError, match="standard deviation must be positive"):
        schedule(5, scale)


def test_golden_values():
    """EDM's 18-step grid and DDPM's and the cosine table agree with their papers' formulas."""
    g = karras(18)
    assert g[0] == 80
    assert math.isclose(g[17], 0.002, rel_tol=1e-9)
    assert math.isclose(g[1], (80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17) ** 7, rel_tol=1e-12)
    linear = vp_linear_table()
    assert math.isclose(linear[0], math.sqrt(1e-4 / (1 - 1e-4)), rel_tol=1e-9)  # alpha_bar_1 = 1 - 1e-4
    assert math.isclose(1 / (1 + linear[-1] ** 2), 4.0358e-5, rel_tol=1e-3)  # alpha_bar_1000 of DDPM
    f = lambda t: math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    assert math.isclose(1 / (1 + vp_cosine_table()[499] ** 2), f(500) / f(0), rel_tol=1e-9)


def test_the_full_training_grid_is_the_table_reversed():
    """At n = T respacing changes nothing."""
    assert torch.equal(vp_linear(1000)[:-1], vp_linear_table().flip(0))


@pytest.mark.parametrize("name", ["karras", "angle", "flow", "shifted"])
@given(n=st.integers(1, 300), scale=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_levels_scale_with_the_data(name, n, scale):
    """Data twice as wide need all levels twice as high: nothing is fixed to std 0.5."""
    torch.testing.assert_close(
        make_sigmas(name, n, scale), scale * make_sigmas(name, n, 1.0), rtol=1e-9, atol=0.0
    )


def test_shift_multiplies_the_levels_of_flow_time():
    """Esser 2024: shifting by m multiplies sigma at the same t by m."""
    a, b = shifted(7, 1.0, sigma_max=10.0, shift=1.0), shifted(7, 1.0, sigma_max=30.0, shift=3.0)
    torch.testing.assert_close(3 * a, b)
    with pytest.raises(VerisimError, match="shift"):
        shifted(7, shift=0.0)


def test_unknown_schedule_suggests_the_nearest():
    """A typing error gets a suggestion."""
    with pytest.raises(VerisimError, match="Did you mean 'karras'"):
        make_sigmas("karas", 5)
