"""Equal bits by time sharing: hulls in closed form, claims that follow the numbers, figures without images."""

import json

import pytest

from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.knee_bits import Point, bit_claims, hull, points, rate_rows, shared
from verisim.reproductions.knee_figures import UNIT, error_curve, write_curves, write_rate_distortion


def around(value, se=0.5):
    return Estimate(value, value - 2 * se, value + 2 * se, se).as_dict()


def table(**systems):
    """Numbers of a reproduction: K_S1=[(bits, error), ... one per seed]; bits None = no rate."""
    rows = {}
    for name, seeds in systems.items():
        for k, (bits, error) in enumerate(seeds):
            rate = None if bits is None else around(bits, 0.1)
            rows[f"{name.replace('_', '-')}@{k}"] = {"test": {"rate_bits": rate, "mse_1e-5": around(error)}}
    return {"reconstruction": rows, "trivial": {"mean image": {"mse_1e-5": around(1000)}}}


def point(name, bits, error, se=0.0):
    return Point(name, Estimate(bits, bits, bits, 0), Estimate(error, error - 2 * se, error + 2 * se, se))


def test_points_are_means_over_seeds_of_systems_with_a_rate():
    """A plain autoencoder (rate 0) and a model without a rate have no place on the axis."""
    found = points(table(K_S2=[(800, 40), (1000, 44)], K_S1=[(100, 90)], K_S9=[(0, 10)], K_S5=[(None, 20)]))
    assert [(p.system, p.bits.value, p.error.value) for p in found] == [("K-S1", 100, 90), ("K-S2", 900, 42)]


def test_the_hull_drops_what_time_sharing_beats():
    """(100, 60) lies above the line from (0, 100) to (200, 10); (300, 20) costs more and is worse."""
    corners = [point("zero", 0, 100), point("good", 200, 10), point("best", 400, 5)]
    dropped = [point("poor", 100, 60), point("worse", 300, 20)]
    assert [p.system for p in hull([*dropped, *corners])] == ["zero", "good", "best"]
    below = point("fine", 100, 50)
    assert [p.system for p in hull([below, *corners])] == ["zero", "fine", "good", "best"]


def test_shared_is_the_weighted_mean():
    """A quarter of the way in bits is a quarter of the way in error and in its interval; nothing beyond the end."""
    corners = [point("a", 100, 80, se=2), point("b", 200, 40, se=4)]
    error, name = shared(corners, 125)
    assert (error.value, error.se) == (70, 2.5) and (error.low, error.high) == (65, 75)
    assert name == "75% a + 25% b"
    assert shared(corners, 200)[1] == "b" and shared(corners, 201) is None


def test_claims_at_equal_bits_follow_the_numbers():
    """Codes below the Gaussian line hold, above it do not, on it is undecided; beyond its end both are mixed."""
    gaussian = {
        "K_S1": [(100, 500)],
        "K_S2": [(1000, 50)],
    }  # line from (100, 500) to (1000, 50): -0.5 per bit
    for error, holds in ((400, True), (500, False), (450, None)):
        (claim,) = bit_claims(table(K_S6=[(200, error)], **gaussian), 64)
        assert claim.name == "bits-K-S6@64" and claim.holds is holds
        assert "200 bits" in claim.evidence and "89% K-S1 + 11% K-S2 450" in claim.evidence
    (claim,) = bit_claims(table(K_S7=[(4000, 10)], **gaussian), 64)  # mixed with the mean image: 1000 - 990/4
    assert claim.holds is False and "1000 bits" in claim.evidence and "752.5" in claim.evidence
    (claim,) = bit_claims(table(K_S7=[(1200, 10)], K_S1=[(100, 500)], K_S2=[(1000, 300)]), 64)
    assert claim.holds is True
    worse = bit_claims(table(K_X1=[(700, 9)], K_S7=[(1200, 10)], **gaussian), 64)  # beaten by cheaper codes
    assert [c.holds for c in worse] == [True, True] and "K-X1 9" in worse[1].evidence
    (claim,) = bit_claims(table(K_S7=[(4000, 10)], K_S1=[(100, 2000)]), 64)  # worse than the mean image
    assert claim.holds is None and "0 bits" in claim.evidence
    assert bit_claims(table(K_S7=[(4000, 10)]), 64) == []  # nothing to compare with


def test_rows_say_what_is_on_the_hull():
    rows = rate_rows(table(K_S1=[(100, 500)], K_S3=[(200, 600)], K_S7=[(4096, 10)]), 64, {"K-S7": 9})
    assert [(r["system"], r["latent"], r["on_hull"], r["parameters"]) for r in rows] == [
        ("K-S1", "gaussian", True, None),
        ("K-S3", "gaussian", False, None),
        ("K-S7", "codes", True, 9),
    ]
    assert rows[2]["bits_per_pixel"] == 1.0
    json.dumps(rows, allow_nan=False)


def test_figures_are_written_from_numbers(tmp_path):
    """Curves of every seed, all systems in one, rate against distortion; a staged run's tail is cut, NaN is left out."""
    runs = [tmp_path / "runs" / n for n in ("K-S1@0", "K-S1@1", "K-X1@0")]
    for run in runs:
        run.mkdir(parents=True)
        rows = [{"step": s, "mse": 0.4 / s, "loss": 1.0} for s in (1, 2, 4)]
        rows += [{"step": 5, "mse": None, "loss": None}]
        rows += [{"step": s, "mse": 0.1, "loss": 2.0} for s in (6, 8)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    steps, values = error_curve(runs[0] / "metrics.jsonl")
    assert steps == [1, 2, 4] and values == pytest.approx([0.4 * UNIT, 0.2 * UNIT, 0.1 * UNIT])
    assert error_curve(tmp_path / "none") is None
    write_curves(runs, tmp_path)
    write_rate_distortion(table(K_S1=[(100, 500)], K_S7=[(4096, 10)]), tmp_path)
    write_rate_distortion(table(K_S9=[(0, 5)]), tmp_path / "empty")
    made = {p.name for p in tmp_path.glob("*.png")}
    assert made == {"K-S1.curves.png", "K-X1.curves.png", "learning-curves.png", "rate-distortion.png"}
    assert not (tmp_path / "empty").exists()
