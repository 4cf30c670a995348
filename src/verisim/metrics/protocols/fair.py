"""The fair protocol (source 004, E6): every generator on the same footing, beside five controls.

All sets share size and range, are rounded to 8 bits and, per measure, have equal sample counts. The
reference are held-out patients. The result is a JSON-able dict; docs/evaluation.md describes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import DataError, VerisimError
from verisim.metrics.c2st import C2ST, Split, auc, c2st
from verisim.metrics.diversity import diversity_ratio
from verisim.metrics.features import FeatureNetwork, build
from verisim.metrics.frechet import frechet_estimate
from verisim.metrics.judges import SmallCNN, binary_score
from verisim.metrics.kid import kernel_estimate
from verisim.metrics.marginals import laterality
from verisim.metrics.memo import Measured, Memo
from verisim.metrics.memorisation import memorisation
from verisim.metrics.prdc import prdc_estimate
from verisim.metrics.protocols.bench import (
    CONTROLS,
    PRESETS,
    Bench,
    Entry,
    FairSettings,
    control_entries,
    generator_entry,
)
from verisim.metrics.protocols.notes import data_warnings, describe, row_warnings
from verisim.metrics.protocols.summary import rank, summarise
from verisim.seeding import generator as seeded

__all__ = ["PRESETS", "FairSettings", "evaluate_fair", "rank", "summarise"]

SCHEMA = "verisim.fair/1"
LEAST = {"fd": 20, "kid": 20, "prdc": 20, "diversity": 10, "memorisation": 1, "laterality": 10}  # fakes

Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)


def evaluate_fair(
    fakes: Mapping[str, Images],
    train: Images,
    test: Images,
    settings: FairSettings | None = None,
    progress: Progress | None = None,
    memo: Memo | None = None,
) -> dict:
    """Judge every set of fakes against held-out real images `test`, with controls.

    fakes: name -> samples; several training seeds of one generator are named "name@seed". train: the real
    images that the generators learned from. A measure that cannot be had is {"value": None, "reason": ...}.
    With a memo, rows measured before on the same images and settings are taken from there.
    Raises RangeError if sets differ in size, channels or range, DataError if a patient is in train and test.
    """
    settings = settings or FairSettings()
    started = time.perf_counter()
    report = progress or (lambda what, done, total: None)
    fakes, train, test = _prepare(fakes, train, test, settings)
    warnings = data_warnings(fakes, train, test, settings)
    report("feature networks", 0, len(fakes) + len(CONTROLS) + 2)
    networks = _networks(train, settings, warnings)
    bench = Bench(train, test, settings, networks, _matched_count(fakes, train))
    entries = {**control_entries(bench), **{n: generator_entry(f, bench) for n, f in fakes.items()}}
    rows: dict[str, dict] = {}
    judges: dict[str, SmallCNN] = {}
    memo = memo or Memo(None)
    common = [settings, bench.n_fake, [n.sha256 for n in networks], train, test]
    for i, (name, entry) in enumerate(entries.items(), start=1):
        report(name, i, len(entries) + 2)
        parts = [*common, entry.kind, name if entry.kind == "control" else "", entry.fakes, entry.fakes.names]
        rows[name], weights = memo.fetch(parts, partial(_row, entry, bench))
        if weights:
            judges[name] = bench.judge_from(weights)
    report("cross matrix", len(entries) + 1, len(entries) + 2)
    cross = _cross(judges, entries, test)
    warnings += row_warnings(rows)
    report("done", len(entries) + 2, len(entries) + 2)
    return {
        "schema": SCHEMA,
        "settings": {**asdict(settings), "networks": [n.name for n in networks]},
        "data": describe(train, test, bench),
        "networks": [n.describe() for n in networks],
        "rows": {n: r for n, r in rows.items() if r["kind"] == "generator"},
        "controls": {n: r for n, r in rows.items() if r["kind"] == "control"},
        "cross": cross,
        "warnings": warnings,
        "seconds": time.perf_counter() - started,
    }


# --- preparation ----------------------------------------------------------------------------------


def _prepare(
    fakes: Mapping[str, Images], train: Images, test: Images, settings: FairSettings
) -> tuple[dict[str, Images], Images, Images]:
    """All sets checked, in [-1, 1], rounded to 8 bits; fakes in a seeded random order, at most max_fakes."""
    if not fakes:
        raise VerisimError("Nothing to compare: give at least one set of generated images.")
    if clash := sorted(set(fakes) & set(CONTROLS)):
        raise VerisimError(
            f"{clash} are names of control rows ({', '.join(CONTROLS)}). Rename the generator."
        )
    for name, images in (("held-out images", test), *fakes.items()):
        train.require_same_spec(images, f"fair comparison, training images against {name}")
    for images, what in ((train, "training"), (test, "held-out")):
        if len(images) < 20:
            raise VerisimError(f"Fair comparison: {len(images)} {what} images; at least 20 are needed.")
    both = sorted(set(train.patients or ()) & set(test.patients or ()))
    if both:
        raise DataError(
            f"Patient '{both[0]}'{f' and {len(both) - 1} more' if len(both) > 1 else ''} in both the training "
            f"and the held-out images. Split by patient ('verisim data check' lists them)."
        )
    chosen = {}
    for name, images in fakes.items():
        order = torch.randperm(len(images), generator=seeded("fair order", settings.seed))
        chosen[name] = images.subset(order[: settings.max_fakes]).to_range(-1, 1).quantise()
        chosen[name] = replace(
            chosen[name], names=tuple(str(i) for i in order[: settings.max_fakes].tolist())
        )
    shuffled = test.subset(torch.randperm(len(test), generator=seeded("fair test order", settings.seed)))
    return chosen, train.to_range(-1, 1).quantise(), shuffled.to_range(-1, 1).quantise()


def _matched_count(fakes: Mapping[str, Images], train: Images) -> int:
    """Samples per entry in distribution measures: the smallest set, not counting sets far too small."""
    most = min(max(len(f) for f in fakes.values()), len(train))
    return min([most, *(len(f) for f in fakes.values() if len(f) >= most / 4)])


def _networks(train: Images, settings: FairSettings, warnings: list[str]) -> list[FeatureNetwork]:
    out = []
    for name in settings.networks:
        try:
            out.append(build(name, train, settings.seed, settings.domain_steps))
        except VerisimError as e:
            if "=" in name:  # asked for by its file: never left out silently
                raise
            warnings.append(f"Feature network '{name}' left out: {e}")
    return out


# --- one row --------------------------------------------------------------------------------------


def _attempt(measure: str, n: int, compute: Callable[[], dict], least: int = 0) -> dict:
    """The measure, or {"value": None, "reason": ...} if there are too few images or it is not defined."""
    least = max(least, LEAST.get(measure, 1))
    if n < least:
        return {"value": None, "reason": f"{n} samples, at least {least} are needed here"}
    try:
        return compute()
    except VerisimError as e:
        return {"value": None, "reason": str(e)}


def _row(entry: Entry, bench: Bench) -> Measured:
    """All measures of one entry, and the weights of its first judge ({} where there is none)."""
    s = bench.settings
    fake = entry.fakes.subset(torch.arange(min(bench.n_fake, len(entry.fakes))))
    rng = seeded("fair row", s.seed)  # the same resamples for every entry
    result: list[C2ST] = []

    def judge() -> dict:
        if isinstance(entry.splits, str):
            raise VerisimError(entry.splits)
        result.append(c2st(entry.splits, bench.judge, s.seed, s.n_seeds, s.bootstrap))
        return result[0].as_dict()

    row: dict = {"kind": entry.kind, "n": len(entry.fakes), "n_distribution": len(fake)}
    n = len(fake)
    row["c2st"] = _attempt("c2st", n, judge)
    row.update({key: {} for key in ("fd", "kid", "prdc", "diversity", "memorisation")})
    for net in (None, *bench.networks):
        space = "image" if net is None else net.name
        x, y = bench.embed(fake, net), bench.embed(bench.test, net)
        row["diversity"][space] = _attempt(
            "diversity", n, partial(_diversity, x, y, bench, rng), bench.n_fake
        )
        row["memorisation"][space] = _attempt("memorisation", n, partial(_memory, entry, net, bench))
        if net is not None:
            _distances(row, space, x, y, bench, rng)
    row["laterality"] = _attempt(
        "laterality", n, lambda: laterality(fake, bench.train, bench.test, rng, s.bootstrap)
    )
    return row, result[0].judges[0].state_dict() if result else {}


def _distances(row: dict, space: str, x: Tensor, y: Tensor, bench: Bench, rng: torch.Generator) -> None:
    """FD, KID and PRDC of features x (fakes) against y (held-out reals)."""
    s, patients = bench.settings, bench.test.patients

    def fd() -> dict:
        value, corrected = frechet_estimate(x, y, rng, patients)
        return {
            **value.as_dict(),
            "corrected": corrected,
            "n_fake": len(x),
            "n_real": len(y),
            "dim": x.shape[1],
        }

    def kid() -> dict:
        return kernel_estimate(x, y, rng, s.bootstrap, patients).as_dict()

    def four() -> dict:
        n = min(len(x), len(y))  # equal counts, as recall and coverage depend on them
        groups = None if patients is None else patients[:n]
        return {
            **{m: e.as_dict() for m, e in prdc_estimate(y[:n], x[:n], rng, s.k, s.bootstrap, groups).items()},
            "n": n,
        }

    for key, compute in (("fd", fd), ("kid", kid), ("prdc", four)):
        row[key][space] = _attempt(key, len(x), compute, bench.n_fake)


def _diversity(x: Tensor, y: Tensor, bench: Bench, rng: torch.Generator) -> dict:
    return diversity_ratio(x, y, rng, bench.settings.bootstrap, bench.test.patients).as_dict()


def _memory(entry: Entry, net: FeatureNetwork | None, bench: Bench) -> dict:
    """Nearest training images; indices count in the fakes as given by the caller and in `train`."""
    asked, held = entry.memory
    x, train, test = (bench.embed(images, net) for images in (asked, bench.train, held))
    found = asdict(memorisation(x, train, test, bench.settings.n_nearest))
    if entry.kind == "generator" and asked.names is not None:
        for pair in found["nearest"]:
            pair["fake"] = int(asked.names[pair["fake"]])
    return found


def _cross(judges: dict[str, SmallCNN], entries: dict[str, Entry], test: Images) -> dict:
    """AUC of each entry's first judge (row) on each entry's held-out samples (column) against `test`."""
    samples = {}
    for name in judges:
        split = entries[name].splits
        assert not isinstance(split, str)
        samples[name] = (split if isinstance(split, Split) else split[0]).fake_test.pixels
    matrix = []
    for judge in judges.values():
        real = binary_score(judge, test.pixels)
        matrix.append([auc(real, binary_score(judge, x)) for x in samples.values()])
    return {"judges": list(judges), "samples": list(samples), "auc": matrix}
