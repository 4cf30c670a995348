"""What is claimed of anomaly maps by reconstruction, and of the choice of a run's weights, held against our numbers."""

from __future__ import annotations

from typing import Any

from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.knee_claims import as_text, mean_over_seeds
from verisim.reproductions.knee_inside_anomaly import CONTRASTS, KINDS, RADII, SHUFFLED, lead
from verisim.reproductions.knee_inside_reading import CODES, VAE, Numbers, Rows, above, all_of, of
from verisim.reproductions.result import Claim

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
