"""The results of a utility test, as a table for a terminal and as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table as TerminalTable

from verisim.reports.blocks import Block, Cell, Column, Pairs, Report, Row, Section, Table, Text
from verisim.reports.side_tables import flat

GLOSSARY = [
    ("AUC", "How often the classifier ranks a case of a class above one of another class, on real patients that it "
     "never saw. 0.5 is chance, 1 perfect; mean over classes. 95 % interval over patients."),
    ("Synthetic only", "Trained on synthetic images alone, tested on real ones. Close to 'real only': the synthetic "
     "images carry the signs of the label."),
    ("Read by a real-trained classifier", "Trained on real images, tested on synthetic ones: do they show what they "
     "were asked to show? Very high values mean exaggerated signs, not quality."),
    ("Gain", "AUC with synthetic images added to the real ones, minus AUC of the real ones alone, on the same "
     "patients. An interval that covers 0 is no gain."),
    ("Shuffled labels", "A control that must be at chance."),
]  # fmt: skip


def shown(e: Mapping[str, float], sign: str = "") -> tuple[str, str]:
    """('0.71', '0.66 to 0.76')."""
    return f"{e['value']:{sign}.2f}", f"{e['low']:{sign}.2f} to {e['high']:{sign}.2f}"


def gain_word(e: Mapping[str, float]) -> str:
    """What a gain's interval says."""
    return "helps" if e["low"] > 0 else "harms" if e["high"] < 0 else "no difference shown"


def _rows(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]], str]]:
    """(name, cells (text, detail), kind) of every line."""
    ratios = results["settings"]["ratios"]
    rows = []
    for name, r in results["rows"].items():
        if "reason" in r:
            rows.append((name, [("-", r["reason"])] * (2 + len(ratios)), ""))
            continue
        cells = [shown(r["tstr"]["auc"]), shown(r["trts"]["auc"])]
        for g in r["gains"]:
            if "reason" in g:
                cells.append(("-", g["reason"]))
            else:
                text, detail = shown(g["gain_auc"], "+")
                cells.append((text, f"{detail}: {gain_word(g['gain_auc'])}"))
        rows.append((f"{name} ({r['n_synthetic']} images)", cells, ""))
    none = [("", "")] * (1 + len(ratios))
    rows.append(("real images only", [shown(results["trtr"]["auc"]), *none], "control"))
    rows.append(("shuffled labels (must be 0.5)", [shown(results["shuffled"]["auc"]), *none], "control"))
    return rows


def _heads(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    ratios = results["settings"]["ratios"]
    return [("Trained on", ""), ("AUC on real patients", "of these images alone"),
            ("Read by a real-trained classifier", "AUC on these images"),
            *((f"Gain at {r:g} per real image", "AUC, above 0 is better") for r in ratios)]  # fmt: skip


def print_table(results: Mapping[str, Any]) -> None:
    """The table and its warnings on the terminal."""
    console = Console()
    table = TerminalTable(*(h for h, _ in _heads(results)))
    for name, cells, _ in _rows(results):
        table.add_row(name, *("\n".join(c).strip() for c in cells))
    console.print(table, markup=False)
    for text in results["warnings"]:
        console.print(f"! {text}", markup=False)


def utility_report(results: Mapping[str, Any]) -> Report:
    """All sections of utility.html."""
    d = results["data"]
    rows = [Row([Cell(name), *(Cell(*c) for c in cells)], kind) for name, cells, kind in _rows(results)]
    blocks: list[Block] = [Text(w, "warning") for w in results["warnings"]]
    blocks.append(Table([Column(*h) for h in _heads(results)], rows))
    settings = {k: results[k] for k in ("settings", "data", "facts", "environment")}
    people = f" of {d['patients_test']} patients" if d["patients_test"] else ""
    return Report(
        "Are the synthetic images useful?",
        f"Classifiers for {' / '.join(d['classes'])}, tested on {d['n_test']} held-out real images{people}; "
        f"{d['n_train']} real training images.",
        [
            Section("useful", "Does training with them help?", blocks),
            Section("glossary", "What the numbers mean", [Pairs(GLOSSARY)]),
            Section("settings", "Settings, data and environment", [Pairs(flat(settings))], folded=True),
        ],
        "Synthetic images: not for diagnosis.",
    )
