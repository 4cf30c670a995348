"""Correlation and straight line: closed forms, coverage of the intervals, groups, nothing from nothing."""

import pytest
import torch

from verisim.errors import VerisimError
from verisim.metrics.association import correlation, regression


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_line_is_found_exactly():
    """y = 3 - 2 x: every resample has the same line and r = -1."""
    x = torch.linspace(0, 5, 40)
    a, b = regression(x, 3 - 2 * x, 200, rng())
    r = correlation(x, 3 - 2 * x, 200, rng())
    for e, value in ((a, 3.0), (b, -2.0), (r, -1.0)):
        assert e.value == pytest.approx(value, abs=1e-6) and e.high - e.low < 1e-5


def test_values_are_those_of_torch():
    """The plug-in values are numpy's and torch's, also far from zero."""
    x, e = torch.randn(2, 50, generator=rng(), dtype=torch.float64)
    y = 1000 + x + e
    assert correlation(x, y, 50, rng()).value == pytest.approx(
        float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    )
    design = torch.stack([torch.ones(50, dtype=torch.float64), x], 1)
    a, b = torch.linalg.lstsq(design, y[:, None]).solution.flatten().tolist()
    found = regression(x, y, 50, rng())
    assert (found[0].value, found[1].value) == (pytest.approx(a), pytest.approx(b))


def test_intervals_cover_as_often_as_they_say():
    """Of 200 samples of 60 points, 95 % intervals of the slope hold the true one in 95 % +- 5 %; 50 % ones do not."""
    inside = {0.95: 0, 0.5: 0}
    for k in range(200):
        x, e = torch.randn(2, 60, generator=rng(k))
        for level in inside:
            b = regression(x, 0.5 * x + e, 200, rng(k), level=level)[1]
            inside[level] += b.low <= 0.5 <= b.high
    assert 180 <= inside[0.95] <= 199 and 80 <= inside[0.5] <= 120


def test_whole_groups_are_drawn():
    """Copies of the same pair add no certainty: the interval is as wide as that of the pairs alone."""
    x, e = torch.randn(2, 30, generator=rng())
    y, names = x + e, [str(k) for k in range(30)]
    alone = correlation(x, y, 500, rng())
    copies = correlation(x.repeat(5), y.repeat(5), 500, rng(), names * 5)
    fooled = correlation(x.repeat(5), y.repeat(5), 500, rng())
    assert copies.value == pytest.approx(alone.value) and copies.se == pytest.approx(alone.se, rel=1e-6)
    assert fooled.se < 0.6 * alone.se


def test_nothing_follows_a_constant():
    e = correlation(torch.zeros(10), torch.arange(10.0), 50, rng())
    assert (e.value, e.low, e.high) == (0.0, 0.0, 0.0)


def test_pairs_are_needed():
    with pytest.raises(VerisimError, match="3 and 4 numbers: pairs, at least 3"):
        correlation(torch.zeros(3), torch.zeros(4), 10, rng())
    with pytest.raises(VerisimError, match="2 and 2 numbers"):
        regression(torch.zeros(2), torch.zeros(2), 10, rng())
