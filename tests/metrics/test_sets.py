"""PRDC, diversity, memorisation, laterality, bootstrap: known sets, coverage, degenerate cases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import (
    Estimate,
    from_se,
    mean_estimate,
    pool,
    rank_with_ties,
    resample_weights,
    tie,
)
from verisim.metrics.diversity import diversity_ratio, mean_pairwise
from verisim.metrics.marginals import compare_factors, laterality, wasserstein
from verisim.metrics.memorisation import memorisation, wilson
from verisim.metrics.prdc import prdc, prdc_estimate


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def gauss(n, d, seed=0):
    return torch.randn(n, d, generator=rng(seed), dtype=torch.float64)


def test_prdc_identical_far_and_collapsed():
    """Identical sets give 1,1,1,1; far sets 0; one repeated real image has precision 1, recall 0."""
    x = gauss(60, 3)
    assert prdc(x, x) == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}
    assert set(prdc(x, x + 100).values()) == {0.0}
    collapsed = prdc(x, x[:1].repeat(60, 1))
    assert collapsed["precision"] == 1.0 and collapsed["recall"] == 0.0 and collapsed["coverage"] < 0.5


def test_prdc_equals_its_definition():
    """The vectorised form is the definition written as loops."""
    real, fake, k = gauss(15, 2, 1), gauss(12, 2, 2) * 1.3, 3
    radius = [sorted(float((a - b).norm()) for b in real)[k] for a in real]
    inside = [[float((r - f).norm()) < radius[i] for f in fake] for i, r in enumerate(real)]
    got = prdc(real, fake, k)
    assert got["precision"] == pytest.approx(sum(any(c) for c in zip(*inside)) / 12)
    assert got["density"] == pytest.approx(sum(map(sum, inside)) / (k * 12))
    assert got["coverage"] == pytest.approx(sum(any(r) for r in inside) / 15)


def test_prdc_sees_two_modes():
    """A generator of one of two modes has full precision, half recall and half coverage."""
    real = torch.cat((gauss(50, 2, 1), gauss(50, 2, 2) + 50))
    got = prdc(real, gauss(100, 2, 3))
    assert got["precision"] > 0.9 and 0.4 < got["coverage"] <= 0.5 and got["recall"] <= 0.5


def test_prdc_refuses_and_bounds():
    """Too few images and constant features are refused; intervals hold their value."""
    with pytest.raises(VerisimError, match="at least 6"):
        prdc(gauss(5, 2), gauss(20, 2))
    with pytest.raises(VerisimError, match="the same"):
        prdc(torch.zeros(20, 2), gauss(20, 2))
    for e in prdc_estimate(gauss(40, 2, 1), gauss(40, 2, 2), rng()).values():
        assert e.low <= e.value <= e.high


def test_diversity_known_ratios():
    """Scaling by c gives ratio c, one repeated image gives 0, and equal sets 1 inside the interval."""
    x = gauss(80, 5)
    assert diversity_ratio(0.5 * x, x, rng()).value == pytest.approx(0.5, rel=1e-9)
    assert diversity_ratio(x[:1].repeat(80, 1), x, rng()).value == pytest.approx(0, abs=1e-9)
    e = diversity_ratio(gauss(80, 5, 1), x, rng())
    assert e.low < 1 < e.high
    assert mean_pairwise(torch.tensor([[0.0], [1.0], [3.0]])) == pytest.approx(2.0)
    with pytest.raises(VerisimError, match="real images are the same"):
        diversity_ratio(x, torch.zeros(20, 5), rng())


def test_memorisation_flags_copies_and_finds_them():
    """Training copies are flagged at distance 0 with their own index; fresh draws are not flagged."""
    train, test = gauss(200, 10, 1), gauss(100, 10, 2)
    copied = memorisation(train[50:90], train, test)
    assert copied.flag and copied.fake_median == 0 and copied.share_below == 1.0 and copied.ratio_fake == 0
    assert copied.nearest[0]["train"] == copied.nearest[0]["fake"] + 50
    fresh = memorisation(gauss(300, 10, 3), train, test)
    assert not fresh.flag and fresh.share_low < 0.08
    one = memorisation(torch.cat((train[7:8] + 1e-9, gauss(99, 10, 4))), train, test, n_nearest=1)
    assert one.nearest[0]["fake"] == 0 and one.nearest[0]["train"] == 7
    with pytest.raises(VerisimError, match="at least 20"):
        memorisation(train, train, test[:5])


def lopsided(n, seed, mirrored=0.0):
    """16 x 16 images with a bright blob on the right, mirrored in a share of them."""
    x = 0.3 * torch.randn(n, 1, 16, 16, generator=rng(seed)) - 0.3
    x[..., 6:10, 11:14] += 0.8
    flip = torch.rand(n, generator=rng(seed + 99)) < mirrored
    x[flip] = x[flip].flip(-1)
    return Images(x.clamp(-1, 1), ImageSpec((16, 16)))


def test_laterality_catches_mirroring():
    """Ratio 1 for right, near 0 for half mirrored and -1 for all mirrored images; the last two flagged."""
    train, test = lopsided(100, 1), lopsided(60, 2)
    right, half, wrong = (laterality(lopsided(150, 3, m), train, test, rng()) for m in (0.0, 0.5, 1.0))
    assert (
        right["score_ratio"] == pytest.approx(1, abs=0.15) and right["flag"] is False and right["same_sign"]
    )
    assert abs(half["score_ratio"]) < 0.3 and half["flag"] is True
    assert wrong["score_ratio"] == pytest.approx(-1, abs=0.15) and wrong["flag"] and not wrong["same_sign"]


def test_laterality_is_silent_on_symmetric_images():
    """Without a clear asymmetry of the real images nothing can be flagged (negative control)."""
    sets = [Images(torch.rand(60, 1, 8, 8, generator=rng(s)) - 0.5, ImageSpec((8, 8))) for s in range(3)]
    assert laterality(*sets, rng())["flag"] is None


def test_factors_by_callable():
    """A measured factor shifted by one real standard deviation has Wasserstein distance 1."""
    images = lopsided(400, 1)
    value = torch.randn(400, generator=rng(5), dtype=torch.float64)

    def measure(x):
        return {"size": value + (1.0 if x is images else 0.0) * value.std()}

    got = compare_factors(measure, images, lopsided(400, 2), rng())["size"]
    assert got["wasserstein"] == pytest.approx(1.0, rel=1e-6)
    assert wasserstein(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 4.0])) == pytest.approx(3.0)
    with pytest.raises(VerisimError, match="Known: size"):
        compare_factors(measure, images, images, rng(), names=["side"])


def test_bootstrap_coverage():
    """The 95 % interval of a mean holds the truth in 91...99 % of 300 repetitions."""
    hits = 0
    for s in range(300):
        e = mean_estimate(gauss(60, 1, s)[:, 0] + 2, 400, rng(s))
        hits += e.low <= 2 <= e.high
    assert 273 <= hits <= 297


def test_groups_widen_the_interval():
    """Four identical images per patient: resampling images (the control) is half as wide as patients."""
    x = gauss(50, 1)[:, 0].repeat_interleave(4)
    groups = [str(i // 4) for i in range(200)]
    by_patient, by_image = mean_estimate(x, 2000, rng(), groups), mean_estimate(x, 2000, rng())
    assert by_patient.se == pytest.approx(2 * by_image.se, rel=0.1)
    w = resample_weights(200, 10, rng(), groups).view(10, 50, 4)
    assert bool((w == w[..., :1]).all()) and bool((w[..., 0].sum(1) == 50).all())


def test_ties_and_ranks():
    """Overlapping entries share a rank, a clear loser does not; ranks are competition ranks."""
    est = {"a": from_se(0.50, 0.02), "b": from_se(0.53, 0.02), "c": from_se(0.90, 0.02)}
    assert tie(est["a"], est["b"]) and not tie(est["a"], est["c"])
    rows = rank_with_ties(est)
    assert [(r["name"], r["rank"]) for r in rows] == [("a", 1), ("b", 1), ("c", 3)]
    assert rows[0]["ties"] == ["b"] and rows[2]["ties"] == []
    target = rank_with_ties({"low": from_se(0.2, 0.01), "right": from_se(1.1, 0.01)}, lambda v: abs(v - 1))
    assert [r["name"] for r in target] == ["right", "low"]


@given(st.floats(-5, 5), st.floats(0.01, 1), st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_pooling_is_never_surer_than_one_seed(mean, se, spread):
    """Three seeds: the mean is right, and disagreement only widens the interval."""
    seeds = [from_se(mean + d * spread, se) for d in (-1, 0, 1)]
    p = pool(seeds)
    assert p.value == pytest.approx(mean, abs=1e-9)
    assert p.se >= se * 0.999
    assert p.low <= mean <= p.high


def test_pool_edges():
    """One seed is itself, no seed is refused, three equal certain seeds stay certain."""
    e = Estimate(1.0, 0.9, 1.2, 0.1)
    assert pool([e]) == e
    assert pool([Estimate(1.0, 1.0, 1.0, 0.0)] * 3).se == 0
    with pytest.raises(VerisimError, match="Nothing to pool"):
        pool([])


def test_wilson_golden():
    """Wilson interval of 5 in 20, as published: 0.112 to 0.469; 0 and n successes stay in [0, 1]."""
    assert wilson(5, 20) == pytest.approx((0.1119, 0.4687), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0
