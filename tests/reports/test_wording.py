"""Sentences and numbers that a radiologist reads."""

import pytest

from verisim.reports.wording import duration, grouped, listing, number, verdict


@pytest.mark.parametrize(
    "value, text",
    [(0.53456, "0.535"), (1.0, "1.00"), (34.81, "34.8"), (2924.0, "2,924"), (0.00123, "0.0012"), (0, "0"),
     (-0.0224, "-0.0224"), (1e-6, "≈ 0"), (None, "–"), (float("nan"), "–"), (float("inf"), "–")],
)  # fmt: skip
def test_number(value, text):
    """Three significant digits, no exponents, a dash for what is not a number."""
    assert number(value) == text


def test_listing_and_duration():
    """Lists end in 'and'; times in the unit that fits."""
    assert listing(["A"]) == "A" and listing(["A", "B", "C"]) == "A, B and C"
    assert (duration(90), duration(600), duration(9000)) == ("90 s", "10 min", "2.5 h")


def entry(name, rank, value, half=0.02):
    return {"name": name, "rank": rank, "value": value, "low": value - half, "high": value + half}


def test_verdict_of_one():
    """With one generator there is no winner, only how it fares."""
    text = " ".join(verdict([entry("a", 1, 0.7)], {"a": "A"}))
    assert (
        "One generator was judged: A." in text
        and "70 % of cases" in text
        and "more often than chance" in text
    )


def test_verdict_of_a_tie():
    """A tie is called a tie."""
    text = " ".join(verdict([entry("a", 1, 0.5), entry("b", 1, 0.51)], {"a": "A", "b": "B"}))
    assert "The 2 generators tie: A and B" in text and "cannot tell them" in text
    three = [entry("a", 1, 0.5), entry("b", 1, 0.51), entry("c", 3, 0.9)]
    assert "Of 3 generators, A and B are hardest to tell from real images; they tie." in verdict(
        three, {"a": "A", "b": "B", "c": "C"}
    )


def test_warnings_are_grouped():
    """The same warning about nine runs is one sentence; results before set-up."""
    w = ["a@0: 300 samples", "a@1: 300 samples", "b@0: 310 samples", "Only 50 images.", "a@1: mirrored"]
    out = grouped(w, {"a": "A", "b": "B"})
    assert out == ["A: mirrored", "Only 50 images.", "A and B, 3 runs: 300 samples (Numbers of a@0.)"]
