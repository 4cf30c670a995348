"""The results of a utility test, as a table for a terminal and as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
DETECTORS = [
    ("Detector", "It gives each image one number: how abnormal it looks. Its AUC is how often an abnormal image of a "
     "real patient gets a higher one than a normal image. Below 0.5 it is wrong more often than right; such a number is "
     "shown as it is."),
    ("A floor", "What a detector is worth that learned from images without any anatomy (noise), or with shuffled labels. "
     "Not 0.5: brightness and contrast alone may tell some findings, and odd images make it unsure. Only what real images "
     "add to this was learned from them."),
]  # fmt: skip


def shown(e: Mapping[str, float], sign: str = "") -> tuple[str, str]:
    """('0.71', '0.66 to 0.76')."""
    return f"{e['value']:{sign}.2f}", f"{e['low']:{sign}.2f} to {e['high']:{sign}.2f}"


def gain_word(e: Mapping[str, float]) -> str:
    """What a gain's interval says."""
    return "helps" if e["low"] > 0 else "harms" if e["high"] < 0 else "no difference shown"


def task_parts(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Results of every task: the classifier's, which stand at the top, under "classifier", then the others."""
    first = {"classifier": {**_CLASSIFIER, **results}} if "trtr" in results else {}
    return {**first, **results.get("tasks", {})}


_CLASSIFIER = {
    "title": "Does training with them help?",
    "output": "logits",
    "learns_from": "labels",
    "meaning": "",
}


def word(task: Mapping[str, Any]) -> str:
    """What to call it in a sentence."""
    return "classifier" if task["output"] == "logits" else "detector"


def _rows(task: Mapping[str, Any], ratios: Sequence[float]) -> list[tuple[str, list[tuple[str, str]], str]]:
    """(name, cells (text, detail), kind) of every line."""
    rows = []
    for name, r in task["rows"].items():
        if "reason" in r:
            rows.append((name, [("-", r["reason"])] * (2 + len(ratios)), ""))
            continue
        trts = ("-", r["trts"]["reason"]) if "reason" in r["trts"] else shown(r["trts"]["auc"])
        cells = [shown(r["tstr"]["auc"]), trts]
        for g in r["gains"]:
            if "reason" in g:
                cells.append(("-", g["reason"]))
            else:
                text, detail = shown(g["gain_auc"], "+")
                cells.append((text, f"{detail}: {gain_word(g['gain_auc'])}"))
        count = f"{r['n_synthetic']} images" + (f", {r['n_normal']} normal" if "n_normal" in r else "")
        rows.append((f"{name} ({count})", cells, ""))
    none = [("", "")] * (1 + len(ratios))
    rows.append(("real images only", [shown(task["trtr"]["auc"]), *none], "control"))
    rows.append((*_control(task, none), "control"))
    return rows


def _control(task: Mapping[str, Any], none: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """Name and cells of the control's line."""
    if "shuffled" in task:
        return "shuffled labels (must be 0.5)", [shown(task["shuffled"]["auc"]), *none]
    control = task["control"]
    if control["must_be"] is not None:
        return f"{control['kind']} (must be {control['must_be']})", [shown(control["auc"]), *none]
    text, detail = shown(control["auc"])
    more, spread = shown(control["real_minus_this"], "+")
    return (
        f"{control['kind']} (a floor, not 0.5: real images must exceed it)",
        [(text, f"{detail}; real images {more} ({spread})"), *none],
    )


def _heads(task: Mapping[str, Any], ratios: Sequence[float]) -> list[tuple[str, str]]:
    return [("Trained on", ""), ("AUC on real patients", "of these images alone"),
            (f"Read by a real-trained {word(task)}", "AUC on these images"),
            *((f"Gain at {r:g} per real image", "AUC, above 0 is better") for r in ratios)]  # fmt: skip


def lead(task: Mapping[str, Any]) -> str:
    """What this task is, in a sentence or two; empty for the classifier."""
    if not task.get("meaning"):
        return ""
    if task["learns_from"] == "labels" or not task.get("normal"):
        return str(task["meaning"])
    return (
        f"{task['meaning']} It learns from images of class '{task['normal']}' alone ({task['n_normal_train']} real "
        f"ones); of the synthetic images only those count. AUC: abnormal against normal."
    )


def print_table(results: Mapping[str, Any]) -> None:
    """The tables and their warnings on the terminal."""
    console = Console()
    ratios = results["settings"]["ratios"]
    for name, task in task_parts(results).items():
        if name != "classifier":
            console.print(f"{task['title']} ({name})", style="bold", markup=False)
        if "reason" in task:
            console.print(f"! {task['reason']}", markup=False)
            continue
        table = TerminalTable(*(h for h, _ in _heads(task, ratios)))
        for line, cells, _ in _rows(task, ratios):
            table.add_row(line, *("\n".join(c).strip() for c in cells))
        console.print(table, markup=False)
        for text in task["warnings"]:
            console.print(f"! {text}", markup=False)


def _section(name: str, task: Mapping[str, Any], ratios: Sequence[float]) -> Section:
    """One task: what it is, its warnings, its table."""
    blocks: list[Block] = [Text(lead(task))] if lead(task) else []
    if "reason" in task:
        return Section(name, task["title"], [*blocks, Text(task["reason"], "warning")])
    blocks += [Text(w, "warning") for w in task["warnings"]]
    rows = [Row([Cell(n), *(Cell(*c) for c in cells)], kind) for n, cells, kind in _rows(task, ratios)]
    blocks.append(Table([Column(*h) for h in _heads(task, ratios)], rows))
    return Section("useful" if name == "classifier" else name, task["title"], blocks)


def utility_report(results: Mapping[str, Any]) -> Report:
    """All sections of utility.html."""
    d, parts = results["data"], task_parts(results)
    settings = {k: results[k] for k in ("settings", "data", "facts", "environment")}
    people = f" of {d['patients_test']} patients" if d["patients_test"] else ""
    who = "Classifiers" if list(parts) == ["classifier"] else "Classifiers and anomaly detectors"
    more = DETECTORS if any(word(t) == "detector" for t in parts.values()) else []
    return Report(
        "Are the synthetic images useful?",
        f"{who} for {' / '.join(d['classes'])}, tested on {d['n_test']} held-out real images{people}; "
        f"{d['n_train']} real training images.",
        [
            *(_section(n, t, results["settings"]["ratios"]) for n, t in parts.items()),
            Section("glossary", "What the numbers mean", [Pairs([*GLOSSARY, *more])]),
            Section("settings", "Settings, data and environment", [Pairs(flat(settings))], folded=True),
        ],
        "Synthetic images: not for diagnosis.",
    )
