"""The tables of a comparison report. A missing number is shown as '–' with its reason, never left blank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from verisim.reports.blocks import Block, Cell, Column, Interval, Row, Table
from verisim.reports.wording import CONTROL_TITLES, number, percent, span

if TYPE_CHECKING:
    from verisim.reports.comparison import Comparison

MISSING = Cell("–", "not measured", "missing")
SHARE = (0.0, 1.0)
BOUNDS = {"c2st": SHARE, "precision": SHARE, "recall": SHARE, "coverage": SHARE, "fd": (0.0, math.inf)}


def estimate_cell(
    e: Mapping[str, Any] | None, reason: str = "not measured", low: float = -math.inf, high: float = math.inf
) -> Cell:
    """A value with its interval in small print, cut at what is possible, or '–' with the reason."""
    if e is None or e.get("value") is None:
        return Cell("–", (e or {}).get("reason") or reason, "missing")
    return Cell(number(e["value"]), span(max(e["low"], low), min(e["high"], high)))


def why_missing(c: Comparison, name: str, path: Sequence[str]) -> str:
    """The reason that the evaluation gives for a number that this entry lacks."""
    for _, row in c.rows_of(name):
        node: Any = row
        for key in path:
            node = node.get(key, {}) if isinstance(node, Mapping) else {}
            if isinstance(node, Mapping) and node.get("reason"):
                return str(node["reason"])
    return "not measured"


def measured(c: Comparison, name: str, key: str) -> Cell:
    """The pooled estimate of a measure, e.g. 'kid/domain'."""
    if key not in c.measures:
        return MISSING
    low, high = BOUNDS.get(key.split("/")[0], (-math.inf, math.inf))
    return estimate_cell(c.pooled[name][key], why_missing(c, name, c.measures[key].path), low, high)


def name_cell(c: Comparison, name: str, more: str = "") -> Cell:
    if c.pooled[name]["kind"] == "control":
        return Cell(c.titles[name], CONTROL_TITLES.get(name, ("", "control"))[1])
    facts = next((f for _, f in c.runs_of(name)), {})
    seeds = c.pooled[name]["seeds"]
    parts = [name if name != c.titles[name] else "", str(facts.get("family") or "")]
    parts += [f"{seeds} training runs" if seeds > 1 else "1 training run", more]
    return Cell(c.titles[name], " · ".join(p for p in parts if p))


def main_network(c: Comparison) -> str | None:
    """The network whose numbers stand in the verdict: the one trained on these images, if there is one."""
    names = [n["name"] for n in c.results["networks"]]
    return next((n for n in ("domain", *names) if n in names), None)


def verdict_table(c: Comparison) -> Table:
    net = main_network(c)
    columns = [
        Column("Place"),
        Column("Generator"),
        Column("Told from real", "0.5 best, 1 always caught"),
        Column("", "0.4 to 1; dashed: guessing"),
        Column(c.measures[f"fd/{net}"].title if net else "FD", "0 best"),
        Column("Coverage", "1 best"),
        Column("Variety", "1 = as real"),
        Column("Copies"),
        Column("Left and right"),
    ]
    shared = [r["rank"] for r in c.ranking]
    rows = []
    for r in c.ranking:
        place = "–" if r["rank"] is None else f"{r['rank']}{'=' if shared.count(r['rank']) > 1 else ''}"
        ties = f"ties with {', '.join(c.titles[t] for t in r['ties'])}" if r["ties"] else ""
        cells = [Cell(place), name_cell(c, r["name"], ties), *_verdict_cells(c, r["name"], net)]
        rows.append(Row(cells, "best" if r["rank"] == 1 else ""))
    for name in c.results["controls"]:
        rows.append(Row([Cell(""), name_cell(c, name), *_verdict_cells(c, name, net)], "control"))
    return Table(
        columns,
        rows,
        (
            "Generators, best first; small print: 95 % interval. Grey rows are controls, sets whose right score is "
            "known: compare with 'Real against real', the best that can be expected."
        ),
    )


def _verdict_cells(c: Comparison, name: str, net: str | None) -> list[Cell]:
    e = c.pooled[name]["c2st"]
    bar = Cell("")
    if e is not None:
        bar = Cell("", interval=Interval(e["value"], e["low"], e["high"], 0.4, 1.0, 0.5))
    return [
        measured(c, name, "c2st"),
        bar,
        measured(c, name, f"fd/{net}"),
        measured(c, name, f"coverage/{net}"),
        measured(c, name, "diversity/image"),
        _copies_flag(c, name),
        _side_flag(c, name),
    ]


def _flag(c: Comparison, name: str, key: str, flags: Sequence[bool | None], words: tuple[str, str]) -> Cell:
    """words: what is said when no run is flagged, and when one is."""
    known = [f for f in flags if f is not None]
    if not known:
        return Cell("–", why_missing(c, name, (key, "image") if key == "memorisation" else (key,)), "missing")
    bad = sum(known)
    detail = f"{bad} of {len(known)} runs" if bad and len(known) > 1 else ""
    return Cell(words[1], detail, "bad") if bad else Cell(words[0], "", "good")


def _copies_flag(c: Comparison, name: str) -> Cell:
    flags = [row["memorisation"].get("image", {}).get("flag") for _, row in c.rows_of(name)]
    return _flag(c, name, "memorisation", flags, ("none seen", "suspected"))


def _side_flag(c: Comparison, name: str) -> Cell:
    flags = [row["laterality"].get("flag") for _, row in c.rows_of(name)]
    return _flag(c, name, "laterality", flags, ("kept", "mixed up"))


def distance_tables(c: Comparison) -> list[Block]:
    """One table per feature network, the main one first: FD, KID, the four of PRDC, variety."""
    out: list[Block] = []
    main = main_network(c)
    for net in sorted(c.results["networks"], key=lambda n: n["name"] != main):
        n = net["name"]
        keys = [f"{m}/{n}" for m in ("fd", "kid", "precision", "recall", "density", "coverage", "diversity")]
        hints = ("0 best", "0 best", "1 best", "1 best", "1 best", "1 best", "1 = as real")
        titles = [c.measures[k].title.split(" (")[0] for k in keys[:-1]] + ["Variety"]
        heads = [Column(t, h) for t, h in zip(titles, hints, strict=True)]
        rows = [Row([name_cell(c, e), *(measured(c, e, k) for k in keys)], _kind(c, e)) for e in c.order]
        what = {
            "domain": "trained on these real images",
            "random": "fixed random filters",
            "pixels": "plain pixels",
        }
        caption = (
            f"In the features of '{n}' ({what.get(n, 'given weights')}; {net['dim']} numbers per image)."
        )
        out.append(Table([Column("Generator"), *heads], rows, caption))
    return out


def _kind(c: Comparison, name: str) -> str:
    return "control" if c.pooled[name]["kind"] == "control" else ""


def copies_table(c: Comparison) -> Table:
    """Unpooled: one row per training run, since one run may copy and another not."""
    columns = [
        Column("Run"),
        Column("Distance to nearest training image", "median"),
        Column("The same for new patients", "median"),
        Column("Suspiciously close", "5 % is chance"),
        Column("Copies"),
        Column("Left-right asymmetry", "1 right, 0 half mirrored"),
        Column("Left and right"),
    ]
    rows = []
    for name in c.order:
        for run, row in c.rows_of(name):
            title = name_cell(c, name) if name == run else Cell(c.titles[name], run)
            rows.append(Row([title, *_memory_cells(row), *_side_cells(row)], _kind(c, name)))
    return Table(
        columns, rows, "Distances are root-mean-square differences of grey values on the scale -1 to 1."
    )


def _memory_cells(row: Mapping[str, Any]) -> list[Cell]:
    m = row["memorisation"].get("image", {})
    if "fake_median" not in m:
        return [Cell("–", m.get("reason", "not measured"), "missing")] * 4
    share = Cell(percent(m["share_below"]), f"{percent(m['share_low'])} to {percent(m['share_high'])}")
    flag = Cell("suspected", "", "bad") if m["flag"] else Cell("none seen", "", "good")
    return [Cell(number(m["fake_median"])), Cell(number(m["test_median"])), share, flag]


def _side_cells(row: Mapping[str, Any]) -> list[Cell]:
    side = row["laterality"]
    ratio = side.get("score_ratio")
    if ratio is None:
        reason = side.get("reason") or "the real images show no clear asymmetry"
        return [Cell("–", reason, "missing")] * 2
    flag = Cell("mixed up", "", "bad") if side["flag"] else Cell("kept", "", "good")
    return [Cell(number(ratio)), flag]
