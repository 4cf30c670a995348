"""FD and KID: closed forms, golden values of torchmetrics, invariances, degenerate sets, negative control."""

import math

import pytest
import torch
from torch import nn

from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate
from verisim.metrics.frechet import frechet_distance, frechet_estimate, frechet_from_moments
from verisim.metrics.kid import kernel_distance, kernel_estimate, polynomial_kernel


def gauss(n, d, seed=0, scale=1.0, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) * scale + shift


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def spd(d, seed):
    a = gauss(d, d, seed)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def test_closed_form_diagonal():
    """Diagonal Gaussians: sum of squared differences of means and of standard deviations."""
    s1, s2 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])
    mu = torch.tensor([1.0, -2.0, 0.5])
    expected = float(mu.square().sum() + (s1 - s2).square().sum())
    got = frechet_from_moments(torch.zeros(3), torch.diag(s1**2), mu, torch.diag(s2**2))
    assert got == pytest.approx(expected, rel=1e-12)


def test_closed_form_full_covariance():
    """For S2 = c^2 S1 the distance is (1 - c)^2 tr S1, whatever the correlations."""
    cov = spd(12, 1)
    got = frechet_from_moments(torch.zeros(12), cov, torch.zeros(12), 9 * cov)
    assert got == pytest.approx(4 * float(cov.trace()), rel=1e-10)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 8), (40, 60, 100), (13, 300, 20), (2, 3, 50)])
def test_equals_matrix_square_root(n, m, d):
    """The singular-value path is the textbook formula with scipy's matrix square root, for N < D too."""
    import scipy.linalg

    x, y = gauss(n, d, 1), gauss(m, d, 2, 1.5, 0.3)
    cx, cy = torch.cov(x.T), torch.cov(y.T)
    eps = 1e-10 * torch.eye(d, dtype=torch.float64)  # lets sqrtm cope with a singular product
    root = scipy.linalg.sqrtm(((cx + eps) @ (cy + eps)).numpy()).real.trace()
    expected = float((x.mean(0) - y.mean(0)).square().sum() + cx.trace() + cy.trace() - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=2e-4)


def test_golden_torchmetrics_fid():
    """Same number as torchmetrics with a custom feature extractor."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1)

    x, y = gauss(80, 12, 1).float(), gauss(90, 12, 2, 1.3).float()
    fid = FrechetInceptionDistance(feature=Flat(), normalize=True)
    fid.inception.double()
    fid.set_dtype(torch.float64)
    fid.update(x.view(80, 3, 2, 2), real=True)
    fid.update(y.view(90, 3, 2, 2), real=False)
    assert frechet_distance(x, y) == pytest.approx(float(fid.compute()), rel=1e-3)


def test_invariances():
    """Rotation, translation and order do not matter; scaling by c multiplies by c^2; it is symmetric."""
    x, y = gauss(60, 10, 1), gauss(50, 10, 2, 2.0)
    q = torch.linalg.qr(gauss(10, 10, 3)).Q
    base = frechet_distance(x, y)
    assert frechet_distance(x @ q + 5, y @ q + 5) == pytest.approx(base, rel=1e-9)
    assert frechet_distance(x.flip(0), y) == pytest.approx(base, rel=1e-12)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * base, rel=1e-10)
    assert frechet_distance(y, x) == pytest.approx(base, rel=1e-10)


@pytest.mark.parametrize("n", [2, 20, 400])
def test_degenerate_sets_are_defined(n):
    """Identical sets give 0 and constant features a real number: never complex, never NaN."""
    x = gauss(n, 64, 1)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    c = torch.ones(n, 64)
    assert frechet_distance(c, c) == 0
    value = frechet_distance(c, x)
    assert math.isfinite(value) and value > 0
    assert value == pytest.approx(float((1 - x.mean(0)).square().sum() + x.var(0).sum()), rel=1e-9)


def test_refusals_say_why():
    """One image has no covariance; NaN and mismatched networks are refused by name."""
    x = gauss(5, 3)
    for bad, text in (
        (x[:1], "at least 2"),
        (x * float("nan"), "NaN"),
        (x[:, :2], "one network"),
        (x[0], "N, D"),
    ):
        with pytest.raises(VerisimError, match=text):
            frechet_distance(x, bad)
    with pytest.raises(VerisimError, match="negative eigenvalue"):
        frechet_from_moments(x[0], -torch.eye(3), x[0], torch.eye(3))


def test_jackknife_removes_the_bias_and_covers():
    """Same distribution: plug-in FD is biased upwards, corrected FD is near 0 within its error."""
    raw, corrected = [], []
    for s in range(20):
        e, c = frechet_estimate(gauss(100, 8, 2 * s), gauss(100, 8, 2 * s + 1), rng(s))
        raw.append(e.value)
        corrected.append(c)
    raw, corrected = torch.tensor(raw), torch.tensor(corrected)
    assert raw.mean() > 0.05
    assert abs(float(corrected.mean())) < 0.25 * float(raw.mean())


def test_interval_covers_truth():
    """The 95 % interval around the bias-corrected FD holds the closed form in at least 85 % of draws."""
    truth, hits = 4 * 0.5**2, 0  # d = 4, mean shift 0.5
    for s in range(60):
        x, y = gauss(150, 4, 2 * s), gauss(150, 4, 2 * s + 1, 1.0, 0.5)
        e, c = frechet_estimate(x, y, rng(s))
        hits += abs(c - truth) <= 1.96 * e.se
    assert hits >= 51


def test_golden_torchmetrics_kid():
    """With one subset of all images KID equals torchmetrics' polynomial MMD."""
    from torchmetrics.image.kid import poly_mmd

    x, y = gauss(50, 20, 1), gauss(50, 20, 2, 1.4)
    assert kernel_distance(x, y) == pytest.approx(float(poly_mmd(x, y)), rel=1e-10)


def test_kid_is_unbiased():
    """Mean KID over many pairs of sets of one distribution is 0 within four standard errors."""
    v = torch.tensor([kernel_distance(gauss(20, 5, 2 * s), gauss(30, 5, 2 * s + 1)) for s in range(300)])
    assert abs(float(v.mean())) < 4 * float(v.std()) / 300**0.5


def test_power_against_spread_where_a_linear_kernel_fails():
    """N(0,1) against N(0,9) in 8 dimensions: the cubic kernel sees it, the linear one (the control) not."""
    x, y = gauss(300, 8, 1), gauss(300, 8, 2, 3.0)
    same = kernel_estimate(x, gauss(300, 8, 3), rng())
    other = kernel_estimate(x, y, rng())
    assert same.low <= 0 <= same.high
    assert other.low > 20 * max(same.high, 1e-3)

    def linear(a, b):
        k = lambda u, v: polynomial_kernel(u, v, degree=1, coef=0.0)  # noqa: E731
        from verisim.metrics.kid import mmd_unbiased

        return mmd_unbiased(k(a, a), k(b, b), k(a, b))

    assert abs(linear(x, y)) < 0.05
    assert frechet_distance(x, y) == pytest.approx(8 * 4, rel=0.15)


def test_kid_interval_with_groups_holds_the_value():
    """Resampling patients keeps the value inside its own interval (copies in a resample are left out)."""
    y = gauss(60, 6, 1).repeat_interleave(2, 0) + 0.1 * gauss(120, 6, 2)
    e = kernel_estimate(gauss(120, 6, 3), y, rng(), 500, [str(i // 2) for i in range(120)])
    assert isinstance(e, Estimate)
    assert e.low < e.value < e.high
