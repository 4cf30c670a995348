"""What is claimed of latents, codes and anomaly maps (source 001, spec 001), held against our numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from verisim.metrics.bootstrap import Estimate, tie
from verisim.reproductions.knee_claims import as_text, mean_over_seeds
from verisim.reproductions.knee_inside_anomaly import CONTRASTS, KINDS, RADII, SHUFFLED, lead
from verisim.reproductions.result import Claim
from verisim.tasks.code_swap import VISIBLE

VAE, CODES, LARGE, SWEEP = "K-S1", "K-S7", "K-S2", "K-S9.2"
EVEN = 0.9  # rank correlation of a factor with the step from which a latent moves it evenly
SPACE = 0.6  # R^2 of the joint space from the VAE's latents (spec 001, section 6 S1)
USED = 0.25  # share of the codes that perplexity should reach (spec 001, section 6 S7)
CARRIED, NOT_CARRIED = 0.5, 0.2  # of the difference in joint space: by codes of the joint, by codes elsewhere
READ_SHUFFLED = 0.05  # above chance; what no readout of shuffled targets may reach

Rows = Mapping[str, Any]
Numbers = Mapping[str, Any]


def claims(numbers: Numbers) -> list[Claim]:
    """All claims whose systems are among numbers["rows"] (SYSTEM@SEED -> row), in the order of the catalogue."""
    rows = numbers["rows"]
    found = [
        even(rows),
        idle(rows),
        space(rows),
        shuffled_targets(rows),
        inactive(rows),
        shuffled_factors(rows),
    ]
    found += sweep(rows)
    found += [inside(rows), carries(rows), untouched(rows), codes_used(rows), code_maps(rows)]
    found += [
        level(numbers),
        seen(rows),
        shuffled_labels(numbers),
        models(numbers),
        larger(numbers),
        fewer(numbers),
    ]
    found += selection(numbers.get("selection", {}))
    return [c for c in found if c is not None]


# --- reading the numbers ------------------------------------------------------------------------------


def of(rows: Rows, system: str, *path: str) -> Estimate | None:
    """An estimate of a system, its mean over seeds; None if nobody measured it."""
    parts = []
    for row in runs_of(rows, system).values():
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            parts.append(value)
    return mean_over_seeds(parts)


def runs_of(rows: Rows, system: str) -> Rows:
    return {n: r for n, r in rows.items() if n.split("@")[0] == system}


def systems_of(rows: Rows) -> list[str]:
    return list(dict.fromkeys(n.split("@")[0] for n in rows))


def at_least(e: Estimate, limit: float) -> bool | None:
    """Is it? None where the interval holds the limit."""
    return True if e.low >= limit else False if e.high < limit else None


def all_of(verdicts: Iterable[bool | None]) -> bool | None:
    """False if any is, else None if any is, else True."""
    each = list(verdicts)
    return False if False in each else None if None in each else True


def above(a: Estimate, b: Estimate) -> bool | None:
    """Is a larger than b? None where they tie."""
    return None if tie(a, b) else a.value > b.value


# --- latents ------------------------------------------------------------------------------------------


def moved(rows: Rows, system: str = "") -> list[tuple[str, dict[str, Any]]]:
    """("K-S1@0 z3", its traversal) of every latent that was moved; of one system, or of all."""
    return [
        (f"{name} z{t['latent']}", t)
        for name, row in rows.items()
        if system in ("", name.split("@")[0])
        for t in row.get("latents", {}).get("traversal", [])
    ]


def even(rows: Rows) -> Claim | None:
    each = [(n, Estimate.from_dict(t["monotone"]), t["factor"]) for n, t in moved(rows, VAE) if not t["idle"]]
    if not each:
        return None
    name, worst, factor = min(each, key=lambda e: e[1].value)
    return Claim(
        "traversal-even",
        f"Each of the VAE's busiest latents moves a factor evenly (rank correlation with the step of {EVEN} or more)",
        "spec 001, section 6 S1",
        all_of(at_least(e, EVEN) for _, e, _ in each),
        f"{sum(e.value >= EVEN for _, e, _ in each)} of {len(each)} latents; least even: {as_text(name, worst)}, {factor}",
    )


def idle(rows: Rows) -> Claim | None:
    idlest = [(n, Estimate.from_dict(t["largest_change"])) for n, t in moved(rows) if t["idle"]]
    busy = [(n, Estimate.from_dict(t["largest_change"])) for n, t in moved(rows) if not t["idle"]]
    if not idlest:
        return None
    most, least = max(idlest, key=lambda e: e[1].value), min(busy, key=lambda e: e[1].value)
    return Claim(
        "traversal-idle",
        "A latent without KL moves nothing by one grey value of 255, every busy one more",
        "control",
        most[1].high < VISIBLE < least[1].low,
        f"largest change of a pixel on [-1, 1]: {as_text(*most)}, {as_text(*least)}; one grey value {VISIBLE:.4f}",
    )


def space(rows: Rows) -> Claim | None:
    e = of(rows, VAE, "latents", "probes", "joint_space", "value")
    return None if e is None else Claim(
        "probe-space", f"The VAE's latents tell the joint space, R2 of {SPACE} or more", "spec 001, section 6 S1",
        at_least(e, SPACE), f"R2 {as_text(VAE, e)}",
    )  # fmt: skip


def readouts(rows: Rows) -> list[tuple[str, dict[str, Any]]]:
    """("K-S1@0 side", its probe) of every probe of latents and code maps."""
    return [
        (f"{name} {factor}", p)
        for name, row in rows.items()
        for kind in ("latents", "codes")
        for factor, p in row.get(kind, {}).get("probes", {}).items()
    ]


def shuffled_targets(rows: Rows) -> Claim | None:
    each = [(n, p["control"]["value"] - p["chance"]) for n, p in readouts(rows)]
    if not each:
        return None
    name, most = max(each, key=lambda e: e[1])
    return Claim(
        "probe-shuffled",
        f"No readout of shuffled targets is {READ_SHUFFLED} above chance",
        "control",
        most < READ_SHUFFLED,
        f"{len(each)} readouts; most {name}, {most:+.3f} over chance",
    )


def inactive(rows: Rows) -> Claim | None:
    e = of(rows, LARGE, "latents", "active")
    if e is None:
        return None
    d = next(iter(runs_of(rows, LARGE).values()))["latents"]["latents"]
    verdict = at_least(e, d / 2)
    return Claim(
        "active-large", "Most latents of the VAE with many are not in use", "spec 001, section 6 S2",
        None if verdict is None else not verdict, f"{as_text('in use', e)} of {d}",
    )  # fmt: skip


def shuffled_factors(rows: Rows) -> Claim | None:
    each = [
        (n, Estimate.from_dict(m["mean"]), m["shuffled"])
        for n, r in rows.items()
        if (m := r.get("latents", {}).get("mig"))
    ]
    if not each:
        return None
    name, e, control = min(each, key=lambda x: x[1].low - x[2])
    return Claim(
        "mig-shuffled", "Every model's mutual information gap is above that of shuffled factors", "control",
        all_of(True if e.low > c else False if e.high < c else None for _, e, c in each),
        f"nearest: {as_text(name, e)}, shuffled {control:.4f}",
    )  # fmt: skip


def betas(rows: Rows) -> dict[float, str]:
    """beta -> the system that was trained with it; the VAE is that of 1."""
    found = {float(s.removeprefix(f"{SWEEP}-")): s for s in systems_of(rows) if s.startswith(f"{SWEEP}-")}
    return dict(sorted({**found, **({1.0: VAE} if found and runs_of(rows, VAE) else {})}.items()))


def sweep(rows: Rows) -> list[Claim | None]:
    """From the smallest to the largest beta."""
    known = betas(rows)
    if len(known) < 2:
        return []

    def changed(name: str, what: str, rises: bool, *path: str) -> Claim | None:
        each = {b: e for b, s in known.items() if (e := of(rows, s, *path)) is not None}
        if len(each) < 2:
            return None
        first, last = each[min(each)], each[max(each)]
        text = ", ".join(f"{b:g}: {e.value:.4g} [{e.low:.4g}, {e.high:.4g}]" for b, e in each.items())
        way = "rises" if rises else "falls"
        holds = above(last, first) if rises else above(first, last)
        return Claim(f"beta-{name}", f"{what} {way} from the smallest beta to the largest", "source 001, eq. 2.28; spec 001, section 6 S9", holds, text)  # fmt: skip

    return [
        changed("rate", "The rate in bits", False, "rate_bits"),
        changed("error", "The squared error x 1e5", True, "mse_1e-5"),
        changed("active", "The number of latents in use", False, "latents", "active"),
        changed("mig", "The mutual information gap", True, "latents", "mig", "mean"),
    ]


# --- codes --------------------------------------------------------------------------------------------


def coded(rows: Rows) -> Rows:
    return {n: r["codes"] for n, r in rows.items() if "codes" in r}


def inside(rows: Rows) -> Claim | None:
    e = of(rows, CODES, "codes", "swaps", "joint", "inside")
    if e is None:
        return None
    field = next(iter(coded(runs_of(rows, CODES)).values()))["swaps"]["joint"]["field"]
    return Claim(
        "swap-inside",
        "Swapped codes change the image in their receptive field more than its area would have it",
        "spec 001, section 6 S6/S7",
        e.low > field,
        f"share of the changed pixels {as_text(CODES, e)}; the field is {field:.3f} of the image",
    )


def carries(rows: Rows) -> Claim | None:
    joint, top = (of(rows, CODES, "codes", "swaps", k, "carried") for k in ("joint", "top"))
    if joint is None or top is None:
        return None
    elsewhere = at_least(top, NOT_CARRIED)
    return Claim(
        "swap-carries",
        f"Codes of the joint carry over {CARRIED:.0%} or more of another knee's joint space, as many at the top under "
        f"{NOT_CARRIED:.0%}",
        "source 001, outlook",
        all_of([at_least(joint, CARRIED), None if elsewhere is None else not elsewhere]),
        f"share of the difference: {as_text('joint', joint)}, {as_text('top', top)}",
    )


def untouched(rows: Rows) -> Claim | None:
    each = {n: c["swaps"]["untouched"] for n, c in coded(rows).items()}
    return None if not each else Claim(
        "swap-untouched", "Codes that are not exchanged, or exchanged for the same ones, change nothing", "control",
        max(each.values()) == 0, f"largest change of any pixel: {max(each.values()):.3g}",
    )  # fmt: skip


def codes_used(rows: Rows) -> Claim | None:
    e = of(rows, CODES, "codes", "perplexity")
    if e is None:
        return None
    k = next(iter(coded(runs_of(rows, CODES)).values()))["codes"]
    return Claim(
        "codes-used", f"The perplexity of the codes is {USED:.0%} of their number or more", "spec 001, section 6 S7",
        at_least(e, USED * k), f"{as_text('perplexity', e)} of {k}",
    )  # fmt: skip


def code_maps(rows: Rows) -> Claim | None:
    """The grade in code maps, against the same maps with their codes renamed."""
    told, renamed = (of(rows, CODES, "codes", kind, "grade", "value") for kind in ("probes", "relabelled"))
    if told is None or renamed is None:
        return None
    chance = next(
        p["chance"] for n, p in readouts(rows) if n.startswith(f"{CODES}@") and n.endswith(" grade")
    )
    return Claim(
        "codes-grade",
        "A linear readout of code maps tells the grade better than chance, and than with codes renamed in every image",
        "source 001, outlook",
        all_of([at_least(told, chance), above(told, renamed)]),
        f"balanced accuracy: {as_text('code maps', told)}, {as_text('renamed', renamed)}; chance {chance:.2f}",
    )


# --- anomalies ----------------------------------------------------------------------------------------


def detectors(numbers: Numbers) -> dict[str, Any]:
    """Every run and every baseline -> its anomaly row."""
    return {**{n: r["anomaly"] for n, r in numbers["rows"].items()}, **numbers["baselines"]}


def level(numbers: Numbers) -> Claim:
    each = [
        (f"{n} at {a}", Estimate.from_dict(e), float(a))
        for n, row in detectors(numbers).items()
        for a, e in row["false_positives"].items()
    ]
    name, e, _ = max(each, key=lambda x: x[1].low - x[2])
    return Claim(
        "conformal",
        "The p-values flag no more fresh normal phantoms than their level says",
        "Vovk 2005; Bates 2023, eq. 1",
        all(e.low <= a for _, e, a in each),
        f"{len(each)} rates; most above: {as_text(name, e)}",
    )


def seen(rows: Rows) -> Claim | None:
    """The negative control of `level`: normal images that are not fresh."""
    path = ("anomaly", "calibrated_on_training_images")
    each = {a: e for a in ("0.05", "0.1", "0.2") if (e := of(rows, VAE, *path, a)) is not None}
    return None if not each else Claim(
        "conformal-seen", "Calibrated on training images instead, the VAE's p-values flag more than their level", "control",
        all(e.low > float(a) for a, e in each.items()), ", ".join(as_text(f"at {a}", e) for a, e in each.items()),
    )  # fmt: skip


def shuffled_labels(numbers: Numbers) -> Claim:
    each = [(n, Estimate.from_dict(row[SHUFFLED])) for n, row in detectors(numbers).items()]
    name, e = max(each, key=lambda x: abs(x[1].value - 0.5))
    return Claim(
        "anomaly-shuffled", "With shuffled labels no detector finds anything", "control",
        all(e.low <= 0.5 <= e.high for _, e in each), f"AUROC furthest from 0.5: {as_text(name, e)}",
    )  # fmt: skip


def first(numbers: Numbers, model: bool) -> str | None:
    """The best model, or the best of what needs none."""
    names = (r["name"] for r in numbers["ranking"])
    return next((n for n in names if (n not in numbers["baselines"]) is model), None)


def ahead(numbers: Numbers, a: str, b: str) -> tuple[bool | None, str]:
    """Does a find more than b? None where its lead, on the same phantoms, covers 0; and the numbers in words."""
    of_name = {r["name"]: Estimate.from_dict(r) for r in numbers["ranking"]}
    e = lead(numbers["ranking"], a, b)
    words = f"AUROC: {as_text(a, of_name[a])}, {as_text(b, of_name[b])}; {as_text('difference', e)}"
    return (True if e.low > 0 else False if e.high < 0 else None), words


def models(numbers: Numbers) -> Claim | None:
    """The best model against the best of what needs none."""
    ours, plain = first(numbers, True), first(numbers, False)
    if ours is None or plain is None:
        return None
    holds, words = ahead(numbers, ours, plain)
    return Claim(
        "anomaly-models",
        "The best autoencoder finds discs better than the mean image and than brightness alone",
        "source 001, section 3.2",
        holds,
        words,
    )


def larger(numbers: Numbers) -> Claim | None:
    """Smallest and weakest disc against largest and strongest, by the best model."""
    best = first(numbers, True)
    if best is None:
        return None
    ends = [(RADII[i], CONTRASTS[i]) for i in (0, -1)]
    verdicts, words = [], []
    for kind in KINDS:
        faint, clear = (
            of(numbers["rows"], best, "anomaly", "cells", f"{kind} {r:g} {c:g}", "image") for r, c in ends
        )
        if faint is not None and clear is not None:
            verdicts.append(above(clear, faint))
            words += [as_text(f"{kind}, largest", clear), as_text(f"{kind}, smallest", faint)]
    return Claim(
        "anomaly-size", "Large discs of high contrast are found more often than small ones of low contrast", "control",
        all_of(verdicts), f"AUROC of {best}: {', '.join(words)}",
    )  # fmt: skip


def fewer(numbers: Numbers) -> Claim | None:
    errors = {s: e for s in (VAE, CODES) if (e := of(numbers["rows"], s, "mse_1e-5")) is not None}
    if len(errors) < 2:
        return None
    holds, words = ahead(numbers, VAE, CODES)
    return Claim(
        "anomaly-fewer",
        "The VAE of few latents finds more than the VQ-VAE that reconstructs better",
        "this project's question",
        holds,
        f"{words}; MSE x 1e5: " + ", ".join(as_text(s, e) for s, e in errors.items()),
    )


# --- selection ----------------------------------------------------------------------------------------


def selection(rows: Rows) -> list[Claim | None]:
    """rows: run -> its row of knee_inside_selection."""
    if not rows:
        return []
    metrics = list(next(iter(rows.values()))["optimism"]["source"])

    def mean(rule: str) -> dict[str, Estimate]:
        each = {k: mean_over_seeds([r["optimism"][rule][k] for r in rows.values()]) for k in metrics}
        return {k: e for k, e in each.items() if e is not None}

    theirs, ours = mean("source"), mean("validated")
    return [
        Claim(
            "selection-source", "The best test epoch of every metric promises more than fresh images keep",
            "spec 001, section 5.7", all_of(True if e.low > 0 else False if e.high < 0 else None for e in theirs.values()),
            "optimism: " + ", ".join(as_text(k, e) for k, e in theirs.items()),
        ),
        Claim(
            "selection-validated", "One step chosen on validation images promises what fresh images keep", "control",
            all(e.low <= 0 <= e.high for e in ours.values()),
            "optimism: " + ", ".join(as_text(k, e) for k, e in ours.items()),
        ),
    ]  # fmt: skip
