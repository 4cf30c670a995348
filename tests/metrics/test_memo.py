"""An evaluation that was killed goes on: the same numbers from disk, and never a wrong one."""

from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.metrics.memo import Memo, digest
from verisim.metrics.protocols import fair
from verisim.metrics.protocols.fair import FairSettings, evaluate_fair

TINY = FairSettings(n_seeds=2, c2st_steps=10, bootstrap=20, networks=("pixels",), judge_width=4)


def pictures(n, seed):
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)
    return Images(x, ImageSpec((8, 8)))


def test_second_evaluation_measures_nothing_and_says_the_same(tmp_path, monkeypatch):
    """All rows, cross matrix included, come back from disk, equal to those of an evaluation without memory."""
    sets = {"a": pictures(80, 3), "b": pictures(80, 4)}
    train, test = pictures(60, 1), pictures(60, 2)
    plain = evaluate_fair(sets, train, test, TINY)
    first = evaluate_fair(sets, train, test, TINY, memo=Memo(tmp_path))
    monkeypatch.setattr(fair, "_row", lambda *a: pytest.fail("a row was measured again"))
    second = evaluate_fair(sets, train, test, TINY, memo=Memo(tmp_path))
    for other in (first, second):
        assert {**other, "seconds": 0} == {**plain, "seconds": 0}


def test_what_changes_the_numbers_changes_the_key():
    """One pixel, one label, one setting: each gives another key; equal contents give the same one."""
    a = pictures(4, 0)
    b = replace(a, pixels=a.pixels.clone())
    assert digest([a, TINY]) == digest([b, TINY])
    b.pixels[0, 0, 0, 0] += 0.001
    labelled = replace(a, labels=torch.zeros(4, dtype=torch.long))
    masked = replace(a, segmentation=torch.zeros(4, 1, *a.spec.size, dtype=torch.uint8))
    other_mask = replace(masked, segmentation=masked.segmentation + 1)
    described = replace(a, texts=("a", "b", "c", "d"))
    others = [[x, TINY] for x in (masked, other_mask, described)]
    others += [[b, TINY], [labelled, TINY], [a, replace(TINY, seed=1)], [TINY, a]]
    assert len({digest(p) for p in [[a, TINY], *others]}) == 8


def test_damaged_measurements_are_made_again(tmp_path):
    """A truncated file is not an error and not a number."""
    memo, calls = Memo(tmp_path), []

    def measure():
        calls.append(1)
        return {"value": 1.5, "none": None}, {"w": torch.ones(2)}

    assert memo.fetch(["x"], measure)[0] == memo.fetch(["x"], measure)[0] and len(calls) == 1
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    numbers, tensors = memo.fetch(["x"], measure)
    assert len(calls) == 2 and numbers["value"] == 1.5 and torch.equal(tensors["w"], torch.ones(2))
