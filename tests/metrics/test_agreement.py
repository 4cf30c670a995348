"""Shares and agreement against closed forms and published examples."""

import math

import pytest
import torch

from verisim.errors import VerisimError
from verisim.metrics.agreement import (
    clustered_wilson,
    cohen_kappa,
    fleiss_kappa,
    mean_pairwise_kappa,
    wilson,
)
from verisim.metrics.bootstrap import Z95

FLEISS_1971 = [  # 10 subjects, 14 raters, 5 categories; kappa 0.210
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (50, 100), (7, 7)])
def test_wilson_solves_its_equation(k, n):
    """Both ends p satisfy (k/n - p)^2 = z^2 p (1 - p) / n: that is what the interval is."""
    e = wilson(k, n)
    for p in (e.low, e.high):
        assert (k / n - p) ** 2 == pytest.approx(Z95**2 * p * (1 - p) / n, abs=1e-12)
    assert 0 <= e.low <= k / n <= e.high <= 1 and e.high - e.low > 0


def test_wilson_at_the_ends_and_golden():
    """0 of n ends at z^2 / (n + z^2); 81 of 263 is Newcombe's example (1998): 0.2553 to 0.3662."""
    assert wilson(0, 20).high == pytest.approx(Z95**2 / (20 + Z95**2))
    e = wilson(81, 263)
    assert (round(e.low, 4), round(e.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_no_share(k, n):
    """What is no share is an error."""
    with pytest.raises(VerisimError, match="is no share"):
        wilson(k, n)


def test_clusters_of_one_are_plain_wilson_up_to_the_small_sample_factor():
    """Without repetition the design effect is m / (m - 1), never below 1."""
    hits = [True] * 30 + [False] * 70
    e, plain = clustered_wilson(hits, [str(i) for i in range(100)]), wilson(30, 100)
    assert e.value == plain.value
    assert e.high - e.low == pytest.approx(plain.high - plain.low, rel=0.01)


def test_copied_answers_do_not_narrow_the_interval():
    """Five readers who always say the same know what one knows; five who differ by pair know more."""
    one = [i % 3 == 0 for i in range(60)]
    pairs = [str(i) for i in range(60)]
    copied = clustered_wilson(one * 5, pairs * 5)
    alone = clustered_wilson(one, pairs)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.02)
    assert wilson(sum(one) * 5, 300).se < 0.5 * copied.se  # the naive interval would be far too narrow
    assert clustered_wilson([False] * 300, pairs * 5).high == wilson(0, 60).high


def test_clustered_interval_covers_as_promised():
    """With readers who share what they find hard, 95 % intervals cover the truth in 90 to 99 % of studies."""
    g = torch.Generator().manual_seed(0)
    covered, naive = 0, 0
    for _ in range(300):
        hard = torch.rand(80, generator=g) < 0.3  # all readers fail on the same pairs
        hits = [bool(h) for _ in range(4) for h in hard]
        e = clustered_wilson(hits, [str(i) for i in range(80)] * 4)
        covered += e.low <= 0.3 <= e.high
        n = wilson(sum(hits), 320)
        naive += n.low <= 0.3 <= n.high
    assert 270 <= covered <= 298 and naive < 240


def test_cohen_textbook():
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: kappa 0.4 (p_o 0.7, p_e 0.5)."""
    a = torch.tensor([1] * 25 + [0] * 25)
    b = torch.tensor([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert cohen_kappa(a, b, 2) == pytest.approx(0.4)
    assert cohen_kappa(a, a, 2) == pytest.approx(1.0)
    assert cohen_kappa(a, 1 - a, 2) == pytest.approx(-1.0)


def test_quadratic_weights_are_the_concordance_correlation():
    """Quadratically weighted kappa = 2 cov / (var + var + (mean difference)^2) (Fleiss and Cohen 1973)."""
    g = torch.Generator().manual_seed(1)
    a = torch.randint(0, 5, (200,), generator=g)
    b = (a + torch.randint(-1, 2, (200,), generator=g)).clamp(0, 4)
    x, y = a.double(), b.double()
    cov = ((x - x.mean()) * (y - y.mean())).mean()
    want = 2 * cov / (x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()) ** 2)
    assert cohen_kappa(a, b, 5, "quadratic") == pytest.approx(float(want))
    assert mean_pairwise_kappa(torch.stack([a, b], 1), 5, "quadratic") == pytest.approx(float(want))


def test_fleiss_1971():
    """The worked example of the source: 0.210."""
    rows = [[k for k, n in enumerate(line) for _ in range(n)] for line in FLEISS_1971]
    assert fleiss_kappa(torch.tensor(rows), 5) == pytest.approx(0.210, abs=5e-4)


def test_independent_readers_agree_by_chance_only():
    """Negative control: coin tosses give a kappa of about 0; one category only is not defined."""
    coins = torch.randint(0, 2, (4000, 3), generator=torch.Generator().manual_seed(2))
    assert abs(fleiss_kappa(coins, 2)) < 0.03
    assert abs(mean_pairwise_kappa(coins, 2)) < 0.03
    assert math.isnan(fleiss_kappa(torch.zeros(5, 3, dtype=torch.long), 2))
    assert math.isnan(cohen_kappa(torch.zeros(5).long(), torch.zeros(5).long(), 2))
