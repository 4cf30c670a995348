"""Writes a report as ONE HTML file: no scripts, nothing loaded from elsewhere, opens offline, prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from verisim.data.atomic import atomic_write
from verisim.reports.blocks import Report

if TYPE_CHECKING:  # pages without images need no tensors
    from verisim.data.spec import Images


def render(content: Report) -> str:
    """The report as HTML text; every name and number is escaped."""
    return template("report.html.j2").render(report=content)


def template(name: str, package: str = "verisim.reports") -> Template:
    """A page of the package's templates folder: everything is escaped, a missing value is an error."""
    env = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return env.get_template(name)


def write_report(path: Path, content: Report) -> Path:
    """Write the report to `path`, whole or not at all; folders are made as needed."""
    path = Path(path)
    atomic_write(path, render(content).encode())
    return path


def comparison_report(
    path: Path,
    results: dict[str, Any],
    *,
    samples: dict[str, Images],
    real: Images,
    runs: dict[str, dict[str, Any]],
    title: str,
    notes: list[str],
    show_real: bool = True,
    train: Images | None = None,
) -> Path:
    """The report of a fair comparison.

    results: what `evaluate_fair` returned, with optional "utility" and "anatomy". samples: name -> generated
    images, in the order in which they were judged. real: held-out images, shown beside them. runs: name ->
    facts: title or recipe, family, parameters, seconds, samples_per_second, likelihood, metrics (path of
    metrics.jsonl); any may be missing. train: the real training images, needed for the pictures of nearest
    neighbours. show_real=False: no real image, and no picture of a nearest neighbour, is in the file.
    """
    from verisim.reports.comparison import comparison_content

    shown = real if show_real else None
    neighbours = train if show_real else None
    return write_report(
        path, comparison_content(results, samples, shown, runs, title=title, notes=notes, train=neighbours)
    )
