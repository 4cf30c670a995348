"""`verisim list`: the catalogue."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from verisim.cli.parser import Parser

EXAMPLES = """\
  verisim list
  verisim list --status done
  verisim list --json
"""

WIDE = 130  # columns of a terminal that has room for everything
STYLE = {"done": "green", "partial": "yellow", "planned": "dim"}


def main(argv: list[str]) -> int:
    from verisim.recipes import catalogue

    parser = Parser(
        "list", "Print the systems of the literature that verisim has, and their state.", EXAMPLES
    )
    parser.add_argument("--status", type=str, default="", help="only done, partial or planned")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = parser.parse_args(argv)
    recipes = [r for r in catalogue().values() if args.status in ("", r.status)]
    if args.json:
        keys = ("id", "title", "kind", "status", "source", "reproduction", "page")
        print(json.dumps([{k: getattr(r, k) for k in keys} for r in recipes], indent=1))
        return 0
    console = Console()
    wide = console.width >= WIDE
    table = Table(
        title=f"{len(recipes)} systems", caption="verisim info ID tells more; verisim train ID trains"
    )
    for column in ("id", "status", "reproduction"):
        table.add_column(column, no_wrap=True)
    for column in ("system", *(("kind", "variants") if wide else ())):
        table.add_column(column)
    for r in recipes:
        more = (r.kind, " ".join(r.variants)) if wide else ()
        table.add_row(r.id, f"[{STYLE[r.status]}]{r.status}[/]", r.reproduction, r.title, *more)
    console.print(table)
    return 0
