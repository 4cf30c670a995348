"""The results of a blinded reading, as tables for a terminal and as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table as TerminalTable

from verisim.reports.blocks import Block, Cell, Column, Interval, Pairs, Report, Row, Section, Table, Text
from verisim.reports.side_tables import flat

CONTROLS = {
    "real": ("two real images", "one of them called real by lot: must be 50 %"),
    "noise": ("noise", "must be 0 %, or the reader did not look"),
    "blurred": ("blurred real images", "must be about 0 %"),
}
GLOSSARY = [
    ("Error rate", "How often a reader took the other image for the real one. 0 %: always told. 50 %: cannot be told; "
     "readers guess. Wilson's 95 % interval; several readers' answers about one pair do not count as independent."),
    ("Rating", "1 surely made by a computer, 2 probably made by a computer, 3 cannot say, 4 probably real, 5 surely "
     "real. Compare with the row of real images, not with 5: readers doubt real images as well."),
    ("Kappa", "Agreement between readers beyond chance: 0 as by chance, 1 complete. Where images cannot be told from "
     "real ones it is near 0, and should be."),
    ("Flagged reader", "Took noise or blurred images for real in more than one in ten of such pairs. Shown, but left "
     "out of what is pooled."),
]  # fmt: skip


def percent(e: Mapping[str, Any]) -> tuple[str, str]:
    """('32 %', '24 to 41 %, 32 of 100')."""
    return f"{e['value']:.0%}".replace(
        "%", " %"
    ), f"{100 * e['low']:.0f} to {100 * e['high']:.0f} %, {e['errors']} of {e['n']}"


def grade(e: Mapping[str, Any]) -> tuple[str, str]:
    """('3.2', '2.9 to 3.5, 60 ratings')."""
    return f"{e['value']:.2f}", f"{e['low']:.2f} to {e['high']:.2f}, {e['n']} ratings"


def verdict(row: Mapping[str, Any] | None) -> str:
    """What a pooled error rate says about a generator."""
    if row is None:
        return "no answers yet"
    if row["low"] > 0.5:
        return "taken for real more often than real images"
    if row["high"] >= 0.5:
        return "not told from real" + (" (but few answers)" if row["low"] < 0.35 else "")
    return "always told from real" if row["errors"] == 0 else "told from real better than by guessing"


def title(name: str, kind: str, form: str) -> tuple[str, str]:
    """How a row is called, and how its number should come out."""
    if kind == "generator" or name not in CONTROLS:
        return name, ""
    return CONTROLS[name] if form == "pairs" else ({"real": "real images"}.get(name, name), "")


def print_tables(results: Mapping[str, Any]) -> None:
    """Error rates, ratings, readers and warnings on the terminal."""
    console = Console()
    names = list(results["readers"])
    for form, head, show in (
        ("pairs", "taken for the real one", percent),
        ("ratings", "realism, 1 to 5", grade),
    ):
        if not results[form]:
            continue
        table = TerminalTable("", "all readers", *names, title=head, title_justify="left")
        for name, row in results[form].items():
            cells = [row["pooled"], *(row["readers"].get(n) for n in names)]
            label = title(name, row["kind"], form)[0] + (" (control)" if row["kind"] == "control" else "")
            table.add_row(label, *("-" if c is None else "\n".join(show(c)) for c in cells))
        console.print(table, markup=False)
    for form, found in results["agreement"].items():
        value = f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f}), {found['method']}" if found[
            "value"] is not None else found["reason"]  # fmt: skip
        if results["items"][form]:
            console.print(f"agreement, {form}s: {value}", markup=False)
    for text in results["warnings"]:
        console.print(f"! {text}", markup=False)


def reading_report(results: Mapping[str, Any]) -> Report:
    """All sections of score.html."""
    people = len(results["readers"])
    readers = f"{people} reader{'s' if people != 1 else ''}, {results['answers']} answers"
    sections = [
        Section("verdict", "Verdict", _verdict(results)),
        Section("pairs", "Which of two images is real?", _table(results, "pairs", percent)),
        Section("ratings", "How real does an image look?", _table(results, "ratings", grade)),
        Section("readers", "Readers", _readers(results)),
        Section("glossary", "What the numbers mean", [Pairs(GLOSSARY)]),
        Section("settings", "How the study was made", [Pairs(_settings(results))], folded=True),
    ]
    return Report(
        results["title"], f"Blinded reading: {readers}.", [s for s in sections if s.blocks],
        "Synthetic images: not for diagnosis.",
    )  # fmt: skip


def _verdict(results: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    for row in results["ranking"]:
        value, detail = percent(results["pairs"][row["name"]]["pooled"])
        ties = f" Ties with {', '.join(row['ties'])}." if row["ties"] else ""
        text = f"{row['rank']}. {row['name']}: {verdict(results['pairs'][row['name']]['pooled'])}; taken for the real one in {value} ({detail}).{ties}"
        blocks.append(Text(text, "verdict"))
    if not blocks:
        blocks.append(Text("There are no pairs to rank by; see the ratings.", "note"))
    return blocks + [Text(w, "warning") for w in results["warnings"]]


def _table(results: Mapping[str, Any], form: str, show: Any) -> list[Block]:
    if not results[form]:
        return []
    names = list(results["readers"])
    start, end, mark = (0.0, 1.0, 0.5) if form == "pairs" else (1.0, 5.0, None)
    hint = "50 %: cannot tell" if form == "pairs" else "compare with real images"
    rows = []
    for name, row in results[form].items():
        head, note = title(name, row["kind"], form)
        cells = [Cell(head, note), _cell(row["pooled"], show)]
        p = row["pooled"]
        shown = None if p is None else Interval(p["value"], p["low"], p["high"], start, end, mark)
        cells += [Cell("", interval=shown)] + [_cell(row["readers"].get(n), show) for n in names]
        rows.append(Row(cells, "control" if row["kind"] == "control" else ""))
    flagged = [Column(n, "flagged" if results["readers"][n]["flag"] else "") for n in names]
    return [Table([Column("Images"), Column("All readers", hint), Column(""), *flagged], rows)]


def _cell(found: Mapping[str, Any] | None, show: Any) -> Cell:
    return Cell("-", "no answers", "missing") if found is None else Cell(*show(found))


def _readers(results: Mapping[str, Any]) -> list[Block]:
    rows = []
    for name, r in results["readers"].items():
        tone = "bad" if r["flag"] else "good" if r["controls"] else "missing"
        told = f"{r['controls'] - r['controls_missed']} of {r['controls']}"
        time = f"{r['seconds_median']:.1f} s", f"{r['seconds_total'] / 60:.0f} min in all"
        rows.append(Row([Cell(name), Cell(f"{r['answered']} of {r['of']}"), Cell(told, r["flag"], tone), Cell(*time),
                         Cell(str(r["changes"]))]))  # fmt: skip
    columns = [Column("Reader"), Column("Answered"), Column("Controls told", "noise and blurred"),
               Column("Time per item", "median"), Column("Corrected")]  # fmt: skip
    blocks: list[Block] = [Table(columns, rows)]
    for form, found in results["agreement"].items():
        if results["items"][form]:
            value = found.get("reason") if found["value"] is None else (
                f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f}), {found['method']}, "
                f"{found['items']} items of generators that {found['readers']} readers share")  # fmt: skip
            blocks.append(Text(f"Agreement on {form}s: {value}."))
    if left := results["left"]:
        blocks.append(
            Text(f"The left image was called real in {left['value']:.0%} of {left['n']} pairs (half are).")
        )
    return blocks


def _settings(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings, generators and environment, flattened."""
    parts = {
        k: results[k] for k in ("study", "settings", "data", "generators", "environment") if results.get(k)
    }
    return flat(parts)
