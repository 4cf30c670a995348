"""verisim data: look at a folder of images before anything is trained on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from verisim.data.check import Report, check
from verisim.data.compose import compose
from verisim.data.compose_plan import read_plan
from verisim.data.compose_write import REPORT, write_composition
from verisim.data.findings import Problem
from verisim.errors import VerisimError

CHECK_HELP = """Say what a folder of images holds and everything that is wrong with it.

Reads PNG, JPEG, TIFF, NIfTI, DICOM and .npz files, and manifest.csv where there is one (columns: image,
patient, split, and any labels). Nothing is changed. Patient names in DICOM headers are never shown.

example:
  verisim data check my_xrays/
  verisim data check my_xrays/ --near-duplicates --rows 100
  verisim data check my_xrays/ --json > report.json

exit code: 0 nothing wrong, 1 problems found, 2 nothing usable
"""


COMPOSE_HELP = """Put several collections together: one label space, no image twice, no person in two splits.

The YAML file says where the collections are and which of their columns mean which label:

  labels: [effusion, cardiomegaly]
  collections:
    nih:
      folder: /data/nih
      listed: {column: findings, separator: "|", names: {Effusion: effusion}, others: absent}
    clinic:
      folder: /data/clinic
      columns: {Pleural Effusion: effusion, Heart: cardiomegaly}
      text: report

A label of the result is 1, 0 or empty: what a collection does not say is unknown.

example:
  verisim data compose plan.yaml --out all_xrays
"""


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of descriptions."""


LOOKS = {"error": ("ERROR", "bold red"), "warning": ("WARNING", "bold yellow"), "note": ("note", "bold cyan")}


def build_parser() -> ArgumentParser:
    """The parser of `verisim data`."""
    parser = ArgumentParser(
        prog="verisim data",
        description="Look at image data before training on it.",
        formatter_class=Formatter,
    )
    commands = parser.add_subcommands(required=True, dest="command", metavar="COMMAND")
    commands.add_subcommand("check", _check_parser(), help="what a folder holds, and what is wrong with it")
    commands.add_subcommand("compose", _compose_parser(), help="several collections as one, without copies")
    return parser


def _compose_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="verisim data compose", description=COMPOSE_HELP, formatter_class=Formatter)
    parser.add_argument("plan", type=str, help="YAML file that names the collections and their labels")
    parser.add_argument("--out", type=str, required=True, help="folder to write to")
    parser.add_argument("--copy", action="store_true", help="copy images instead of linking to them")
    parser.add_argument("--seed", type=int, default=0, help="of the split of people who have none")
    return parser


def _check_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="verisim data check", description=CHECK_HELP, formatter_class=Formatter)
    parser.add_argument("folder", type=str, help="folder of images, or one .npz file")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for programs")
    parser.add_argument("--rows", type=int, default=20, help="lines shown per problem; the rest is counted")
    parser.add_argument("--near-duplicates", dest="near_duplicates", action="store_true",
                        help="also look for images that are nearly the same")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `verisim data ARGV` and return its exit code."""
    options = build_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    if options.command == "compose":
        return _compose(options.compose)
    wanted = options.check
    try:
        report = check(wanted.folder, near_duplicates=wanted.near_duplicates, progress=not wanted.json)
    except VerisimError as error:
        if wanted.json:
            print(json.dumps({"error": str(error), "exit_code": 2}))
        print(str(error), file=sys.stderr)
        return 2
    if wanted.json:
        print(
            json.dumps({**asdict(report), "usable": report.usable, "exit_code": report.exit_code}, indent=2)
        )
    else:
        show(report, max(1, wanted.rows))
    return report.exit_code


def _compose(wanted: Any) -> int:
    """Put collections together and say what happened."""
    found = compose(read_plan(wanted.plan), seed=wanted.seed)
    write_composition(found, wanted.out, copy=wanted.copy)
    splits = Counter(r.split for r in found.rows)
    print(
        f"{wanted.out}: {len(found.rows)} images of {len({r.patient for r in found.rows})} people "
        f"({', '.join(f'{n} {s}' for s, n in splits.most_common())}).\n"
        f"Left out: {len(found.dropped)} copies, {len(found.unreadable)} unreadable files ({REPORT} names them).\n"
        f"Copies contradict each other in {found.conflicts} labels (now unknown); {found.moved} images changed their "
        f"split, so that nobody is in two."
    )
    for label in found.labels:
        known = Counter(r.labels.get(label) for r in found.rows)
        print(f"  {label}: {known[1]} present, {known[0]} absent, {known[None]} unknown")
    return 0


def show(report: Report, rows: int = 20, console: Console | None = None) -> None:
    """Print a report for people; at most `rows` lines per problem."""
    console = console or Console(highlight=False)
    console.print(f"\n[bold]{escape(report.folder)}[/bold]: {report.images} readable image(s)\n")
    console.print(_contents(report, rows))
    for problem in report.problems:
        _show_problem(problem, rows, console)
    console.print(_verdict(report))


def _contents(report: Report, rows: int) -> Table:
    """What is there: one line per property."""
    table = Table(title="What is in it", title_justify="left", title_style="bold", show_header=False, box=None,
                  padding=(0, 2, 0, 1))  # fmt: skip
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in report.facts.items():
        table.add_row(name, Text(text))
    for name, counts in report.counts.items():
        if counts:
            table.add_row(name, Text(_counted(counts, rows)))
    for name, counts in report.labels.items():
        table.add_row(f"column '{name}'", Text(_counted(counts, rows)))
    return table


def _counted(counts: dict[str, int], rows: int) -> str:
    """'PNG 832' or '256 x 256: 800, 512 x 512: 32'."""
    shown = ", ".join(f"{value} ({n})" for value, n in list(counts.items())[:rows])
    return shown + (f" and {len(counts) - rows} more" if len(counts) > rows else "")


def _show_problem(problem: Problem, rows: int, console: Console) -> None:
    """One problem: how bad, what, where, what to do."""
    word, style = LOOKS[problem.severity]
    many = f" ({len(problem.items)})" if problem.items else ""
    console.print(f"\n[{style}]{word}[/{style}]  [bold]{escape(problem.title)}{many}[/bold]")
    if problem.remedy:
        console.print(Padding(Text(problem.remedy), (0, 0, 0, 4)))
    for item in problem.items[:rows]:
        console.print(Padding(Text("- " + item, overflow="fold"), (0, 0, 0, 6)))
    if len(problem.items) > rows:
        console.print(Padding(Text(f"... and {len(problem.items) - rows} more (--rows {len(problem.items)} "
                                   "shows all)"), (0, 0, 0, 6)))  # fmt: skip


def _verdict(report: Report) -> str:
    """The last line: can this folder be used?"""
    count = {s: sum(p.severity == s for p in report.problems) for s in LOOKS}
    if not report.usable:
        return "\n[bold red]Not usable:[/bold red] no image of this folder can be read.\n"
    if count["error"]:
        return (f"\n[bold red]Mend first:[/bold red] {count['error']} error(s), {count['warning']} "
                "warning(s).\n")  # fmt: skip
    if count["warning"]:
        return f"\n[bold yellow]Usable[/bold yellow] with {count['warning']} warning(s): read them once.\n"
    return "\n[bold green]Ready to use:[/bold green] nothing wrong found.\n"


if __name__ == "__main__":
    sys.exit(main())
