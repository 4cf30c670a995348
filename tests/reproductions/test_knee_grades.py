"""Agreement of grades per system: means over seeds, empty grades, intervals, a claim that follows the numbers."""

import pytest

from verisim.reproductions.knee_grades import agreement, grade_claims, grade_rows


def table(**systems):
    """K_S1=[share of unchanged grades, one per seed] of 100 images; grade 4 has none."""
    empty = {"n": 0, "agreement": None, "toward": None, "accuracy_on_originals": None}
    return {
        "reconstruction": {
            f"{s.replace('_', '-')}@{k}": {
                "labels": {"all": {"n": 100, "agreement": a, "toward": "0"}, "4": empty}
            }
            for s, seeds in systems.items()
            for k, a in enumerate(seeds)
        }
    }


def test_rows_are_means_over_seeds():
    rows = grade_rows(table(K_S1=[0.5, 0.7], K_S7=[1.0]))
    assert rows["K-S1"]["all"] == {"n": 100, "agreement": pytest.approx(0.6), "toward": ["0", "0"]}
    assert rows["K-S7"]["4"] == {"n": 0, "agreement": None, "toward": [None]}
    assert grade_rows({"reconstruction": {"K-S1@0": {"test": {}}}}) == {}


def test_intervals_of_certain_shares_are_not_empty():
    e = agreement({"n": 100, "agreement": 1.0})
    assert e.value == e.high == 1 and 0.93 < e.low < 0.97 and e.se > 0


@pytest.mark.parametrize(("intro", "holds"), [(0.4, True), (0.9, False), (0.72, None)])
def test_the_claim_follows_the_numbers(intro, holds):
    (claim,) = grade_claims(table(K_S1=[0.7], K_S8=[intro]), 64)
    assert claim.holds is holds and claim.name == "grades@64"
    assert grade_claims(table(K_S1=[0.7]), 64) == []
