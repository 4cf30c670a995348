"""From rows to a verdict: training seeds pooled, entries ranked, ties called ties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from verisim.errors import pick
from verisim.metrics.bootstrap import Estimate, pool, rank_with_ties

CHANCE = 0.5  # AUC of a judge that cannot tell


@dataclass(frozen=True)
class Measure:
    """Where a number lies in a row, and which values are good."""

    path: tuple[str, ...]  # keys in the row
    title: str  # for a table head
    best: float  # value of a perfect generator
    goal: str  # "low", "high" or "target" (closest to `best`)

    def badness(self, value: float) -> float:
        """Less is better."""
        if self.goal == "low":
            return max(value, self.best)
        if self.goal == "high":
            return -value
        return abs(value - self.best)


def measures(results: Mapping) -> dict[str, Measure]:
    """The rankable measures of a result: 'c2st', 'accuracy', 'fd/<net>', 'kid/<net>', 'precision/<net>', ..."""
    out = {
        "c2st": Measure(("c2st", "auc"), "C2ST AUC", CHANCE, "low"),
        "accuracy": Measure(("c2st", "accuracy"), "C2ST accuracy", CHANCE, "low"),
        "diversity/image": Measure(("diversity", "image"), "Diversity ratio (image)", 1.0, "target"),
    }
    for net in results["networks"]:
        n = net["name"]
        out[f"fd/{n}"] = Measure(("fd", n), net["label"], 0.0, "low")
        out[f"kid/{n}"] = Measure(("kid", n), f"KID({n})", 0.0, "low")
        out[f"diversity/{n}"] = Measure(("diversity", n), f"Diversity ratio ({n})", 1.0, "target")
        for m in ("precision", "recall", "density", "coverage"):
            goal = "target" if m == "density" else "high"
            out[f"{m}/{n}"] = Measure(("prdc", n, m), f"{m.capitalize()} ({n})", 1.0, goal)
    return out


def read(row: Mapping, measure: Measure) -> Estimate | None:
    """The estimate at the measure's place, or None if this row has none."""
    node: Mapping = row
    for key in measure.path:
        node = node.get(key, {})
    return Estimate.from_dict(node) if node.get("value") is not None else None


def summarise(results: Mapping) -> dict[str, dict]:
    """Entries "name@seed" pooled to "name", controls kept; name -> kind, seeds and every measure.

    The pooled value is the mean over seeds; its interval covers the seeds' spread and the sampling error.
    A measure that no seed has is None. `flags` counts the seeds flagged for memorisation and laterality.
    """
    groups: dict[str, list[Mapping]] = {}
    for name, row in {**results["rows"], **results["controls"]}.items():
        groups.setdefault(name.split("@")[0] if row["kind"] == "generator" else name, []).append(row)
    out = {}
    for name, rows in groups.items():
        entry: dict = {"kind": rows[0]["kind"], "seeds": len(rows), "n": sum(r["n"] for r in rows)}
        for key, measure in measures(results).items():
            found = [e for e in (read(r, measure) for r in rows) if e is not None]
            entry[key] = {**pool(found).as_dict(), "n_seeds": len(found)} if found else None
        entry["flags"] = {
            "memorisation": sum(bool(r["memorisation"]["image"].get("flag")) for r in rows),
            "laterality": sum(bool(r["laterality"].get("flag")) for r in rows),
        }
        out[name] = entry
    return out


def rank(results: Mapping, measure: str = "c2st", include_controls: bool = True) -> list[dict]:
    """Verdict table, best first: name, kind, rank (shared by ties), ties, value, low, high, se.

    An AUC below 0.5 counts as 0.5: a judge that is wrong by chance proves nothing. Entries without the
    measure come last with rank None and the value None.
    """
    chosen = pick(measures(results), measure, "measure")
    pooled = summarise(results)
    if not include_controls:
        pooled = {n: e for n, e in pooled.items() if e["kind"] == "generator"}
    have = {n: Estimate.from_dict(e[measure]) for n, e in pooled.items() if e[measure] is not None}
    rows = rank_with_ties(have, chosen.badness)
    none: dict = {"rank": None, "ties": [], "value": None, "low": None, "high": None, "se": None}
    rows += [{"name": n, **none} for n in pooled if n not in have]
    return [{**row, "kind": pooled[row["name"]]["kind"], "measure": measure} for row in rows]
