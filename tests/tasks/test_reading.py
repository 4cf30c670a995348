"""Putting a reading together: nothing twice, sides balanced, nothing that gives the answer away."""

from collections import Counter

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.metrics.c2st import auc
from verisim.tasks.contestants import Contestant
from verisim.tasks.reading import ReadingSettings, design

SMALL = ReadingSettings(pairs=12, ratings=6, real_pairs=8, controls=10)


def images(n, seed, size=(16, 16), channels=1, low=-1.0):
    x = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(seed)) * (1 - low) + low
    return Images(x, ImageSpec(size, channels, low))


def contestants(n=20, **kind):
    return [Contestant("gan", images(n, 1, **kind)), Contestant("vae", images(n, 2, **kind))]


def flat(picture):
    return picture.numpy().tobytes()


def test_counts_sides_and_no_image_twice():
    """Twelve pairs per generator, sides balanced exactly, every picture at most once in the study."""
    sheets = design(contestants(), images(80, 3), SMALL)
    count = Counter((s.item.form, s.item.name) for s in sheets)
    assert count == {
        ("pair", "gan"): 12, ("pair", "vae"): 12, ("pair", "noise"): 5, ("pair", "blurred"): 5, ("pair", "real"): 8,
        ("rating", "gan"): 6, ("rating", "vae"): 6, ("rating", "real"): 6, ("rating", "noise"): 2,
    }  # fmt: skip
    sides = Counter((s.item.name, s.item.correct) for s in sheets if s.item.form == "pair")
    assert sides["gan", "left"] == sides["gan", "right"] == 6
    shown = Counter(flat(p) for s in sheets for p in s.pictures)
    assert max(shown.values()) == 1
    assert len({s.item.id for s in sheets}) == len(sheets)


def test_the_key_is_right():
    """The side called correct holds the real picture, to the last bit; sources name what is shown."""
    real = images(80, 3)
    originals = {flat(((p + 1) * 127.5).round().to(torch.uint8)) for p in real.pixels}
    for s in design(contestants(), real, SMALL):
        known = [flat(p) in originals for p in s.pictures]
        if s.item.form == "rating":
            assert known == [s.item.name == "real"]
        elif s.item.name == "real":
            assert known == [True, True]
        else:
            assert known == [s.item.correct == "left", s.item.correct == "right"]
        assert [src.startswith("real") for src in s.sources] == known


def test_order_and_number_tell_nothing():
    """Seeded, different for another seed, pairs before ratings; the place in the order says nothing about the kind."""
    a = design(contestants(), images(80, 3), SMALL)
    assert [s.sources for s in a] == [s.sources for s in design(contestants(), images(80, 3), SMALL)]
    other = ReadingSettings(12, 6, 8, 10, seed=1)
    assert [s.sources for s in a] != [s.sources for s in design(contestants(), images(80, 3), other)]
    forms = [s.item.form for s in a]
    assert forms == sorted(forms)
    big = design(contestants(120), images(400, 3), ReadingSettings(100, 0, 0, 0))
    where = {
        n: torch.tensor([float(i) for i, s in enumerate(big) if s.item.name == n]) for n in ("gan", "vae")
    }
    assert abs(auc(where["gan"], where["vae"]) - 0.5) < 0.12  # 3 standard errors


@pytest.mark.parametrize("kind", [{"channels": 3}, {"size": (6, 16, 16)}])
def test_colour_and_volumes(kind):
    """Colour stays colour; of volumes the middle slice is shown."""
    real = images(80, 3, **kind)
    sheets = design(contestants(**kind), real, SMALL)
    assert {tuple(p.shape) for s in sheets for p in s.pictures} == {(kind.get("channels", 1), 16, 16)}


@pytest.mark.parametrize(
    ("fakes", "reals", "settings", "message"),
    [
        (10, 80, SMALL, r"gan holds 10 images; 12 pairs and 6 ratings need 18\. --pairs 4 would fit"),
        (20, 50, SMALL, r"There are 50 held-out real images; this study needs 56.*--pairs 9 would fit"),
        (20, 10, SMALL, r"Ask for less"),
    ],
)
def test_too_few_images(fakes, reals, settings, message):
    """Too few images: how many are needed, and what would fit."""
    with pytest.raises(VerisimError, match=message):
        design(contestants(fakes), images(reals, 3), settings)


def test_what_is_said_to_fit_fits():
    """The remedy is true: the named number of pairs works, one more does not."""
    real = images(50, 3)
    design(contestants(), real, ReadingSettings(9, 6, 8, 10))
    with pytest.raises(VerisimError):
        design(contestants(), real, ReadingSettings(10, 6, 8, 10))


def test_bad_sets():
    """Another range, another size, names of controls, the same name twice, negative numbers."""
    real = images(80, 3)
    with pytest.raises(RangeError, match="reader study"):
        design([Contestant("gan", images(20, 1, low=0.0))], real, SMALL)
    with pytest.raises(RangeError, match="reader study"):
        design([Contestant("gan", images(20, 1, size=(8, 8)))], real, SMALL)
    with pytest.raises(VerisimError, match="'noise' is the name of a control"):
        design([Contestant("noise", images(20, 1))], real, SMALL)
    with pytest.raises(VerisimError, match="share a name"):
        design([contestants()[0]] * 2, real, SMALL)
    with pytest.raises(VerisimError, match="at least one run"):
        design([], real, SMALL)
    with pytest.raises(VerisimError, match="pairs is -1"):
        ReadingSettings(pairs=-1)
    with pytest.raises(VerisimError, match="Nothing to read"):
        ReadingSettings(pairs=0, ratings=0)
