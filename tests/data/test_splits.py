"""Splits: by patient, the same everywhere, stable when patients join; leaks are named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verisim.data.splits import leaking, make_split, require_no_leak, split_name
from verisim.errors import DataError


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=30, unique=True),
    st.integers(0, 5),
    st.randoms(),
)
def test_order_does_not_matter(patients, seed, random):
    """The split depends on (seed, patient) alone; neither side is empty."""
    first = make_split(patients, seed=seed)
    shuffled = patients * 2
    random.shuffle(shuffled)
    assert make_split(shuffled, seed=seed) == first and set(first.values()) == {"train", "test"}


def test_golden_split_and_share():
    """A fixed answer (first 48 bits of sha256("0/c") etc. by sha256sum), so that a change of the rule is noticed; the share is right within 3 sigma."""
    assert make_split(["a", "b", "c", "d", "e", "f"]) == GOLDEN
    share = list(make_split(map(str, range(10_000))).values()).count("test") / 10_000
    assert abs(share - 0.2) < 0.012
    three = list(make_split(map(str, range(10_000)), {"test": 0.2, "val": 0.1}).values())
    assert abs(three.count("val") / 10_000 - 0.1) < 0.009


GOLDEN = {"a": "train", "b": "train", "c": "test", "d": "train", "e": "train", "f": "test"}


def test_patients_stay_where_they_are():
    """Adding patients moves none of the old ones."""
    old = make_split(map(str, range(200)))
    new = make_split(map(str, range(300)))
    assert all(new[p] == s for p, s in old.items())


def test_small_and_wrong():
    """One patient trains; two go to both sides; fractions that do not fit are refused."""
    assert make_split(["only"]) == {"only": "train"}
    assert sorted(make_split(["x", "y"]).values()) == ["test", "train"]
    with pytest.raises(DataError, match="sum below 1"):
        make_split("ab", {"test": 0.7, "val": 0.3})


def test_leaks_are_listed():
    """A patient in two splits is an error with up to five names; one split each is none."""
    patients = [f"p{i}" for i in range(7)] * 2
    splits = ["train"] * 7 + ["test"] * 7
    assert len(leaking(patients, splits)) == 7 and leaking(patients, ["train"] * 14) == {}
    with pytest.raises(
        DataError, match=r"7 patient\(s\) in more than one split: p0 in test and train;.*2 more"
    ):
        require_no_leak(patients, splits, "folder")
    with pytest.raises(DataError, match=r"split 'tset' is unknown. Did you mean 'test'"):
        split_name("tset", "row 3")
