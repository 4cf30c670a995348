"""Scoring a reading: perfect readers, guessing ones, careless ones."""

import json
import random

import pytest

from verisim.metrics.agreement import wilson
from verisim.metrics.readers import score
from verisim.metrics.reading import Answer, Item

SIDES = ("left", "right")


def make_items(pairs=100, ratings=10):
    items = []
    for kind, name, n in (
        ("generator", "good", pairs), ("generator", "bad", pairs), ("control", "noise", 5),
        ("control", "blurred", 5), ("control", "real", 40),
    ):  # fmt: skip
        items += [Item(f"{name}-{i}", "pair", kind, name, SIDES[i % 2]) for i in range(n)]
    for kind, name in (("generator", "good"), ("generator", "bad"), ("control", "real")):
        items += [Item(f"rate-{name}-{i}", "rating", kind, name) for i in range(ratings)]
    return items


def read(items, reader, right, seed=0, grades=None):
    """Answers of a reader who is right with probability right[name]."""
    rng = random.Random(seed)
    out = []
    for i in items:
        if i.form == "pair":
            ok = rng.random() < right.get(i.name, 0.5)
            out.append(Answer(reader, i.id, i.correct if ok else SIDES[1 - SIDES.index(i.correct)], 2.0))
        else:
            grade = (grades or {}).get(i.name, 3) + rng.choice([-1, 0, 1])
            out.append(Answer(reader, i.id, str(grade), 1.0))
    return out


CAREFUL = {"good": 0.5, "bad": 1.0, "noise": 1.0, "blurred": 1.0, "real": 0.5}


def test_counts_are_exact_and_json():
    """Every count and Wilson interval of a single reader is what counting by hand gives."""
    items = make_items()
    answers = read(items, "anna", CAREFUL)
    results = json.loads(json.dumps(score(items, answers)))
    key = {i.id: i for i in items}
    wrong = sum(a.answer != key[a.item].correct for a in answers if a.item.startswith("good-"))
    row = results["pairs"]["good"]["pooled"]
    assert (row["errors"], row["n"]) == (wrong, 100) and row["value"] == wrong / 100
    e = wilson(wrong, 100)
    assert row["low"] == pytest.approx(e.low, abs=2e-3) and row["high"] == pytest.approx(e.high, abs=2e-3)
    assert results["pairs"]["bad"]["pooled"]["errors"] == 0
    assert results["readers"]["anna"]["seconds_median"] == 2.0
    assert [r["name"] for r in results["ranking"]] == ["good", "bad"]
    assert results["ranking"][1]["rank"] == 2  # 0 % and 50 % are no tie
    assert list(results["pairs"])[:2] == ["good", "bad"]  # generators before controls


def test_careless_reader_is_flagged_and_left_out():
    """Who takes noise for real counts for nothing in the pooled rows, but is shown."""
    items = make_items()
    careless = {**CAREFUL, "bad": 0.0, "noise": 0.5, "blurred": 0.5}
    both = score(items, read(items, "anna", CAREFUL) + read(items, "ben", careless, seed=4))
    assert both["readers"]["ben"]["flag"].startswith("took noise") and not both["readers"]["anna"]["flag"]
    assert both["pooled_readers"] == ["anna"]
    assert both["pairs"]["bad"]["pooled"]["errors"] == 0
    assert both["pairs"]["bad"]["readers"]["ben"]["errors"] == 100
    assert any("'ben' is left out" in w for w in both["warnings"])


def test_one_slip_is_forgiven_two_are_not():
    """One of ten controls may be missed (a slip of the finger), two may not."""
    items = [i for i in make_items() if i.name in ("noise", "blurred")]
    for slips, flagged in ((1, False), (2, True)):
        answers = [Answer("a", i.id, "left" if (i.correct == "left") != (k < slips) else "right", 1.0)
                   for k, i in enumerate(items)]  # fmt: skip
        assert bool(score(items, answers)["readers"]["a"]["flag"]) == flagged


def test_leaking_key_and_side_preference_are_noticed():
    """Real against real must come out at one half, and so must left against right."""
    items = make_items()
    leak = score(items, read(items, "a", {**CAREFUL, "real": 1.0}))
    assert any("key leaks" in w for w in leak["warnings"])
    told = ("noise", "blurred")
    lefty = score(items, [Answer("a", i.id, i.correct if i.name in told else "left", 1.0)
                          for i in items if i.form == "pair"])  # fmt: skip
    assert any("prefer a side" in w for w in lefty["warnings"])
    clean = score(items, read(items, "a", CAREFUL))
    assert not any("leaks" in w or "side" in w for w in clean["warnings"])


def test_ratings_have_means_intervals_and_a_difference_to_real():
    """Real images at 4 and a generator at 2 differ by 2, and the interval says so."""
    items = make_items(ratings=40)
    results = score(items, read(items, "a", CAREFUL, grades={"good": 4, "bad": 2, "real": 4}))
    bad, good = results["ratings"]["bad"], results["ratings"]["good"]
    assert bad["pooled"]["low"] < 2 < bad["pooled"]["high"] and sum(bad["pooled"]["counts"].values()) == 40
    assert bad["below_real"]["low"] > 1 and good["below_real"]["low"] < 0 < good["below_real"]["high"]
    assert results["ratings"]["real"]["below_real"] is None


def test_agreement_takes_the_right_kappa():
    """Two readers: Cohen; three: Fleiss; twins agree fully; one reader has no agreement, and it says why."""
    items = make_items(ratings=30)
    a = read(items, "a", CAREFUL, grades={"good": 4, "bad": 2})
    twin = [Answer("b", x.item, x.answer, x.seconds) for x in a]
    two = score(items, a + twin)["agreement"]
    assert two["pair"]["method"] == "Cohen's kappa" and two["pair"]["value"] == pytest.approx(1)
    assert two["rating"]["value"] == pytest.approx(1) and two["pair"]["items"] == 200
    three = score(items, a + twin + read(items, "c", CAREFUL, seed=9))["agreement"]
    assert three["pair"]["method"] == "Fleiss' kappa" and 0.3 < three["pair"]["value"] < 0.9
    one = score(items, a)["agreement"]["pair"]
    assert one["value"] is None and "1 reader" in one["reason"]


def test_all_flagged_and_unfinished():
    """Nobody left: pooled rows are empty, never invented. Unfinished readers are named."""
    items = make_items()
    results = score(items, read(items, "a", {**CAREFUL, "noise": 0.0}))
    assert results["pairs"]["good"]["pooled"] is None and results["ranking"] == []
    part = score(items, read(items, "a", CAREFUL)[:50])
    assert any("answered 50 of" in w for w in part["warnings"])
    assert any("no control pair yet" in w for w in part["warnings"])
