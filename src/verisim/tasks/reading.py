"""Puts a blinded reading together (source 004, E1): which images stand beside which, on which side, in which order.

No real image is shown twice: who meets one again beside another partner knows that it is real.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics import controls
from verisim.metrics.readers import ATTENTION
from verisim.metrics.reading import SIDES, Item
from verisim.seeding import generator as seeded
from verisim.tasks.contestants import Contestant

NOISE_RATINGS = 2  # images of noise among the ratings


@dataclass(frozen=True)
class ReadingSettings:
    """How much is read; every number 0 leaves that part out."""

    pairs: int = 100  # pairs of one real and one generated image, per generator
    ratings: int = 20  # single images of each generator, and as many real ones
    real_pairs: int = 20  # pairs of two real images: a control that must come out at one half
    controls: int = 10  # pairs of a real image and noise or a blurred image: must be told apart
    seed: int = 0  # of the choice of images, their sides and their order

    def __post_init__(self) -> None:
        for name in ("pairs", "ratings", "real_pairs", "controls"):
            if getattr(self, name) < 0:
                raise VerisimError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.pairs + self.ratings == 0:
            raise VerisimError("Nothing to read: give --pairs or --ratings more than 0.")

    @property
    def fakes(self) -> int:
        """Images that each generator must bring."""
        return self.pairs + self.ratings

    def reals(self, generators: int) -> int:
        """Real images that are needed, each for one place."""
        controls = self.controls if self.pairs else 0
        real_pairs = self.real_pairs if self.pairs else 0
        return self.pairs * generators + 2 * real_pairs + controls + self.ratings


@dataclass(frozen=True)
class Sheet:
    """One item of the reading with what is shown."""

    item: Item
    pictures: tuple[Tensor, ...]  # left and right, or one; each (C, H, W) uint8
    sources: tuple[str, ...]  # where each picture comes from: generator or "real", and number or file name


def design(contestants: Sequence[Contestant], real: Images, settings: ReadingSettings) -> list[Sheet]:
    """The sheets in the order of reading: all pairs, then all ratings, each in a seeded random order.

    Images in [-1, 1] of one size and 1 or 3 channels; of volumes the middle slice is shown. Sides are
    balanced within each kind of pair. VerisimError if there are too few images, naming what would fit.
    """
    _check(contestants, real, settings)
    pool = _Pool(real, settings.seed)
    sheets: list[Sheet] = []
    if settings.pairs:
        for c in contestants:
            picked = torch.randperm(len(c.images), generator=seeded("reading fakes", settings.seed, c.name))
            fakes = c.images.subset(picked[: settings.pairs])
            sources = [f"{c.name} {_name(c.images, i)}" for i in picked[: settings.pairs].tolist()]
            sheets += _pairs(
                "generator", c.name, pool.take(settings.pairs), _levels(fakes), sources, settings
            )
        sheets += _control_pairs(pool, settings)
    sheets = _shuffled(sheets, settings.seed, "pair")
    if settings.ratings:
        sheets += _shuffled(_ratings(contestants, pool, settings), settings.seed, "rating")
    return sheets


def _check(contestants: Sequence[Contestant], real: Images, settings: ReadingSettings) -> None:
    """Names that are unique and no control's, one spec, enough images."""
    names = [c.name for c in contestants]
    if not names:
        raise VerisimError("Nothing to read: give at least one run or folder of generated images.")
    if clash := [n for n in names if n in ("real", *ATTENTION)]:
        raise VerisimError(f"'{clash[0]}' is the name of a control row. Rename that generator.")
    if len(set(names)) < len(names):
        raise VerisimError(f"Two of the sets share a name: {', '.join(sorted(names))}. Rename one.")
    if real.spec.channels not in (1, 3):
        raise VerisimError(f"Images have {real.spec.channels} channels; people read grey (1) or colour (3).")
    for c in contestants:
        real.require_same_spec(c.images, f"reader study, real images against {c.name}")
        if len(c.images) < settings.fakes:
            raise VerisimError(
                f"{c.name} holds {len(c.images)} images; {settings.pairs} pairs and {settings.ratings} ratings "
                f"need {settings.fakes}. {_remedy(len(c.images) - settings.ratings)}"
            )
    need = settings.reals(len(names))
    if len(real) < need:
        room = (len(real) - (need - settings.pairs * len(names))) // len(names)
        raise VerisimError(
            f"There are {len(real)} held-out real images; this study needs {need}, because none may be shown "
            f"twice ({len(names)} generator(s) x {settings.pairs} pairs, 2 x {settings.real_pairs} pairs of real "
            f"images, {settings.controls} controls, {settings.ratings} ratings). {_remedy(room)}"
        )


def _remedy(pairs: int) -> str:
    return f"--pairs {pairs} would fit." if pairs > 0 else "Ask for less: --pairs, --ratings, --real-pairs."


class _Pool:
    """Real images in a seeded random order; none is given out twice."""

    def __init__(self, real: Images, seed: int) -> None:
        self.real, self.order, self.next = (
            real,
            torch.randperm(len(real), generator=seeded("reading real", seed)),
            0,
        )

    def take(self, n: int) -> Images:
        """The next n images; their names say which they are."""
        index = self.order[self.next : self.next + n]
        self.next += n
        names = tuple(f"real {_name(self.real, i)}" for i in index.tolist())
        part = self.real.subset(index)
        return Images(part.pixels, part.spec, names=names)


def _name(images: Images, i: int) -> str:
    return images.names[i] if images.names else str(i)


def _levels(images: Images) -> Tensor:
    """(N, C, H, W) uint8: the 256 grey levels of an 8-bit file; the middle slice of volumes."""
    x = images.to_range(-1, 1).pixels
    x = x if x.ndim == 4 else x[:, :, x.shape[2] // 2]
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _pairs(
    kind: str, name: str, real: Images, other: Tensor, sources: Sequence[str], settings: ReadingSettings
) -> Iterator[Sheet]:
    """Real image k beside other image k, as often on the left as on the right."""
    n = len(other)
    lot = torch.randperm(n, generator=seeded("reading sides", settings.seed, name)) % 2
    shown = _levels(real)
    for k in range(n):
        side = int(lot[k])
        two, from_ = (shown[k], other[k]), ((real.names or ())[k], sources[k])
        order = (0, 1) if side == 0 else (1, 0)
        item = Item("", "pair", kind, name, SIDES[side])
        yield Sheet(item, tuple(two[i] for i in order), tuple(from_[i] for i in order))


def _control_pairs(pool: _Pool, settings: ReadingSettings) -> Iterator[Sheet]:
    """Real against noise, against itself blurred, and against another real image."""
    n_noise = (settings.controls + 1) // 2
    if n_noise:
        real = pool.take(n_noise)
        noise = controls.noise_like(pool.real, n_noise, seeded("reading noise", settings.seed))
        yield from _pairs("control", "noise", real, _levels(noise), ["noise"] * n_noise, settings)
    if n_blur := settings.controls // 2:
        real = pool.take(n_blur)
        blurred = controls.blurred(real, max(1.5, max(real.spec.size) / 16))
        names = [f"blurred {name}" for name in real.names or ()]
        yield from _pairs("control", "blurred", real, _levels(blurred), names, settings)
    if settings.real_pairs:
        real, other = pool.take(settings.real_pairs), pool.take(settings.real_pairs)
        yield from _pairs("control", "real", real, _levels(other), list(other.names or ()), settings)


def _ratings(contestants: Sequence[Contestant], pool: _Pool, settings: ReadingSettings) -> Iterator[Sheet]:
    """Single images: generated ones that no pair showed, real ones, and a little noise."""
    noise = controls.noise_like(pool.real, NOISE_RATINGS, seeded("reading noise ratings", settings.seed))
    for c in contestants:
        picked = torch.randperm(len(c.images), generator=seeded("reading fakes", settings.seed, c.name))
        picked = picked[settings.pairs : settings.fakes]
        for k, i in enumerate(picked.tolist()):
            picture = _levels(c.images.subset(picked[k : k + 1]))[0]
            yield Sheet(
                Item("", "rating", "generator", c.name), (picture,), (f"{c.name} {_name(c.images, i)}",)
            )
    real = pool.take(settings.ratings)
    for picture, name in zip(_levels(real), real.names or ()):
        yield Sheet(Item("", "rating", "control", "real"), (picture,), (name,))
    for picture in _levels(noise):
        yield Sheet(Item("", "rating", "control", "noise"), (picture,), ("noise",))


def _shuffled(sheets: Iterator[Sheet] | Sequence[Sheet], seed: int, form: str) -> list[Sheet]:
    """In random order, numbered in that order, so that a number tells nothing."""
    found = list(sheets)
    order = torch.randperm(len(found), generator=seeded("reading order", seed, form)).tolist()
    out = []
    for k, i in enumerate(order, start=1):
        old = found[i].item
        item = Item(f"{form}-{k:03d}", old.form, old.kind, old.name, old.correct)
        out.append(Sheet(item, found[i].pictures, found[i].sources))
    return out
