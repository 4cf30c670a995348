"""What is claimed of latents, codes and anomaly maps (source 001, spec 001), held against our numbers."""

from __future__ import annotations

from typing import Any

from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.knee_claims import as_text
from verisim.reproductions.knee_inside_findings import (
    fewer,
    larger,
    level,
    models,
    seen,
    selection,
    shuffled_labels,
)
from verisim.reproductions.knee_inside_reading import (
    CODES,
    LARGE,
    SWEEP,
    VAE,
    Numbers,
    Rows,
    above,
    all_of,
    at_least,
    of,
    runs_of,
    systems_of,
)
from verisim.reproductions.result import Claim
from verisim.tasks.code_swap import VISIBLE

EVEN = 0.9  # rank correlation of a factor with the step from which a latent moves it evenly
SPACE = 0.6  # R^2 of the joint space from the VAE's latents (spec 001, section 6 S1)
USED = 0.25  # share of the codes that perplexity should reach (spec 001, section 6 S7)
CARRIED, NOT_CARRIED = 0.5, 0.2  # of the difference in joint space: by codes of the joint, by codes elsewhere
READ_SHUFFLED = 0.05  # above chance; what no readout of shuffled targets may reach


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
