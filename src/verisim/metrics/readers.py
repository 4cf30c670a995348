"""Scores a blinded reading by people (source 004, E1): answers and key in, error rates and ratings out.

pair    which of two images is real? (2AFC)  error rate 0.5: readers cannot tell; 0: they always can
rating  how real is this image? 1 (certainly made by a computer) to 5 (certainly real)

Control pairs keep it honest: real against noise and against blurred images must be told apart, or the
reader is flagged and left out of what is pooled; of two real images one is called "real" by lot, so that
its error rate must be 0.5.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from verisim.metrics.agreement import (
    clustered_wilson,
    cohen_kappa,
    fleiss_kappa,
    mean_pairwise_kappa,
    wilson,
)
from verisim.metrics.bootstrap import (
    Estimate,
    from_draws,
    from_se,
    mean_estimate,
    rank_with_ties,
    resample_weights,
)
from verisim.metrics.reading import FORMS, GRADES, SIDES, Answer, Item
from verisim.seeding import generator as seeded

ATTENTION = ("noise", "blurred")  # controls that must be told from real images
CHANCE = 0.5
MOST_MISSED = 0.1  # share of attention controls that a reader may miss
DRAWS = 1000  # bootstrap resamples


def score(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, Any]:
    """All results as a JSON-able dict; docs/evaluation.md describes it.

    One answer per reader and item, each of a known item (verisim.web.answers checks that).
    """
    key = {i.id: i for i in items}
    names = list(dict.fromkeys(a.reader for a in answers))
    readers = {n: _reader([a for a in answers if a.reader == n], key) for n in names}
    trusted = [n for n in names if not readers[n]["flag"]]
    kept = [a for a in answers if a.reader in trusted]
    pairs = _by_name(items, "pair", answers, kept, _rates)
    ratings = _by_name(items, "rating", answers, kept, _grades)
    for row in ratings.values():
        row["below_real"] = _below(ratings.get("real"), row)
    results = {
        "schema": "verisim.readers/1",
        "items": {f: sum(i.form == f for i in items) for f in FORMS},
        "answers": len(answers),
        "readers": readers,
        "pooled_readers": trusted,
        "pairs": pairs,
        "ratings": ratings,
        "left": _left(kept, key),
        "agreement": {f: _agreement(f, kept, key, trusted) for f in FORMS},
        "ranking": _ranking(pairs),
    }
    return {**results, "warnings": _warnings(results)}


def _reader(answers: Sequence[Answer], key: Mapping[str, Item]) -> dict[str, Any]:
    """Progress, speed, and whether the controls were told from real images."""
    controls = [a for a in answers if key[a.item].form == "pair" and key[a.item].name in ATTENTION]
    missed = sum(a.answer != key[a.item].correct for a in controls)
    flag = ""
    if missed > MOST_MISSED * len(controls):
        flag = f"took noise or blurred images for real in {missed} of {len(controls)} control pairs"
    return {
        "answered": len(answers),
        "of": len(key),
        "seconds_median": statistics.median(a.seconds for a in answers),
        "seconds_total": sum(a.seconds for a in answers),
        "changes": sum(a.changes for a in answers),
        "controls": len(controls),
        "controls_missed": missed,
        "flag": flag,
    }


def _by_name(
    items: Sequence[Item],
    form: str,
    answers: Sequence[Answer],
    kept: Sequence[Answer],
    measure: Callable[[Sequence[Answer], Mapping[str, Item]], dict[str, Any] | None],
) -> dict[str, dict[str, Any]]:
    """Per generator and control: the measure pooled over trusted readers, and of every reader."""
    rows: dict[str, dict[str, Any]] = {}
    for name, kind in dict.fromkeys((i.name, i.kind) for i in items if i.form == form):
        mine = {i.id: i for i in items if i.form == form and i.name == name}
        each = {
            r: [a for a in answers if a.item in mine and a.reader == r]
            for r in {a.reader: 0 for a in answers}
        }
        rows[name] = {
            "kind": kind,
            "items": len(mine),
            "pooled": measure([a for a in kept if a.item in mine], mine),
            "readers": {r: measure(found, mine) for r, found in each.items()},
        }
    return dict(sorted(rows.items(), key=lambda row: row[1]["kind"] != "generator"))


def _rates(answers: Sequence[Answer], items: Mapping[str, Item]) -> dict[str, Any] | None:
    """Error rate with Wilson's interval; answers of several readers about one pair count as a cluster."""
    if not answers:
        return None
    wrong = [a.answer != items[a.item].correct for a in answers]
    e = clustered_wilson(wrong, [a.item for a in answers])
    return {**e.as_dict(), "errors": sum(wrong), "n": len(wrong)}


def _grades(answers: Sequence[Answer], items: Mapping[str, Item]) -> dict[str, Any] | None:
    """Mean rating with a bootstrap interval over images, and how often each grade was given."""
    if not answers:
        return None
    x = torch.tensor([float(a.answer) for a in answers])
    e = mean_estimate(x, DRAWS, seeded("reader ratings"), [a.item for a in answers])
    counts = {g: sum(a.answer == g for a in answers) for g in GRADES}
    return {**e.as_dict(), "n": len(answers), "counts": counts}


def _below(real: Mapping[str, Any] | None, row: Mapping[str, Any]) -> dict[str, float] | None:
    """Mean rating of real images minus this row's, as independent sets of images."""
    if real is None or real is row or real["pooled"] is None or row["pooled"] is None:
        return None
    a, b = real["pooled"], row["pooled"]
    return from_se(a["value"] - b["value"], math.hypot(a["se"], b["se"])).as_dict()


def _left(answers: Sequence[Answer], key: Mapping[str, Item]) -> dict[str, Any] | None:
    """How often the left image was called real; half of the real ones are on the left."""
    chosen = [a.answer == "left" for a in answers if key[a.item].form == "pair"]
    return {**wilson(sum(chosen), len(chosen)).as_dict(), "n": len(chosen)} if chosen else None


def _agreement(
    form: str, answers: Sequence[Answer], key: Mapping[str, Item], readers: Sequence[str]
) -> dict[str, Any]:
    """Kappa over the generators' items that all trusted readers answered; controls would only flatter it."""
    given = {(a.reader, a.item): FORMS[form].index(a.answer) for a in answers if key[a.item].form == form}
    wanted = [i for i, item in key.items() if item.form == form and item.kind == "generator"]
    common = [i for i in wanted if all((r, i) in given for r in readers)]
    if len(readers) < 2 or len(common) < 2:
        reason = (
            f"{len(readers)} reader(s) and {len(common)} item(s) in common; at least 2 of each are needed"
        )
        return {"value": None, "reason": reason}
    table = torch.tensor([[given[r, i] for r in readers] for i in common])  # (items, readers)
    method, kappa = _kappa(form, len(readers))
    value = kappa(table)
    if math.isnan(value):
        return {"value": None, "reason": "all answers are the same, so chance agreement is complete"}
    weights = resample_weights(len(common), DRAWS, seeded("reader kappa"))
    index = [torch.arange(len(common)).repeat_interleave(w.long()) for w in weights]
    draws = torch.tensor([kappa(table[i]) for i in index], dtype=torch.float64)
    e = from_draws(value, draws[torch.isfinite(draws)])
    return {**e.as_dict(), "method": method, "items": len(common), "readers": len(readers)}


def _kappa(form: str, readers: int) -> tuple[str, Callable[[Tensor], float]]:
    """Which kappa fits: ordered grades are weighted, sides are not."""
    if form == "rating":
        name = "Cohen's kappa, quadratic weights" + ("" if readers == 2 else ", mean over pairs of readers")
        return name, lambda t: mean_pairwise_kappa(t, len(GRADES), "quadratic")
    if readers == 2:
        return "Cohen's kappa", lambda t: cohen_kappa(t[:, 0], t[:, 1], len(SIDES))
    return "Fleiss' kappa", lambda t: fleiss_kappa(t, len(SIDES))


def _ranking(pairs: Mapping[str, Mapping[str, Any]]) -> list[dict]:
    """Generators, hardest to tell from real first; above chance is no better than chance."""
    found = {
        n: Estimate.from_dict(r["pooled"])
        for n, r in pairs.items()
        if r["pooled"] and r["kind"] == "generator"
    }
    return rank_with_ties(found, lambda v: -min(v, CHANCE))


def _warnings(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the results must know before believing them."""
    out = [
        f"Reader '{n}' is left out of the pooled numbers: {r['flag']}."
        for n, r in results["readers"].items()
        if r["flag"]
    ]
    out += [
        f"Reader '{n}' has answered {r['answered']} of {r['of']} items."
        for n, r in results["readers"].items()
        if r["answered"] < r["of"]
    ]
    if results["items"]["pair"] and not any(n in results["pairs"] for n in ATTENTION):
        out.append("The study has no control pairs: nothing shows that its readers looked.")
    trusted = [r for n, r in results["readers"].items() if n in results["pooled_readers"]]
    if any(n in results["pairs"] for n in ATTENTION) and any(r["controls"] == 0 for r in trusted):
        out.append("A reader has answered no control pair yet, so nothing shows that he or she looked.")
    real = results["pairs"].get("real", {}).get("pooled")
    if real and not real["low"] <= CHANCE <= real["high"]:
        out.append(
            "Of two real images the one called real by lot was not chosen half of the time: the key leaks."
        )
    left = results["left"]
    if left and not left["low"] <= CHANCE <= left["high"]:
        out.append(
            f"The left image was called real in {left['value']:.0%} of the pairs: readers prefer a side."
        )
    if len(results["pooled_readers"]) == 1:
        out.append("There is one reader: intervals cover other images, not other people.")
    return out
