"""The report of a fair comparison: which blocks, in which order, from the evaluation's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.protocols.summary import Measure, measures, rank, summarise
from verisim.reports import side_tables, tables, wording
from verisim.reports.blocks import Block, Gallery, Pairs, Picture, Report, Section, Table, Text
from verisim.reports.figures import curves_png, dots_png, grid_png, pairs_png, read_curves

SHOWN = 24  # samples per generator


@dataclass(frozen=True)
class Comparison:
    """What all sections are made from."""

    results: dict[str, Any]
    pooled: dict[str, dict]  # summarise(results)
    measures: dict[str, Measure]
    ranking: list[dict]  # generators only, best first
    titles: dict[str, str]  # pooled name -> how it is called in the report
    runs: dict[str, dict[str, Any]]  # "name@seed" -> facts

    def runs_of(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """The seeds of a pooled generator with their facts; a seed without facts is left out."""
        mine = [n for n in self.results["rows"] if n.split("@")[0] == name]
        return [(n, self.runs.get(n) or self.runs[name]) for n in mine if n in self.runs or name in self.runs]

    def rows_of(self, name: str) -> list[tuple[str, dict]]:
        """The unpooled rows of a generator or control."""
        if name in self.results["controls"]:
            return [(name, self.results["controls"][name])]
        return [(n, r) for n, r in self.results["rows"].items() if n.split("@")[0] == name]

    @property
    def order(self) -> list[str]:
        """Generators best first, then the controls."""
        return [r["name"] for r in self.ranking] + list(self.results["controls"])


def comparison_content(
    results: dict[str, Any],
    samples: dict[str, Images],
    real: Images | None,
    runs: dict[str, dict[str, Any]],
    *,
    title: str,
    notes: list[str],
    train: Images | None = None,
) -> Report:
    """All sections; see `html.comparison_report` for the arguments. real None: no real image is shown."""
    for key in ("rows", "controls", "networks", "settings", "data"):
        if key not in results:
            raise VerisimError(
                f"Comparison report: the results have no '{key}'. They must come from evaluate_fair "
                f"(verisim compare writes them as results.json)."
            )
    c = Comparison(
        results=results,
        pooled=summarise(results),
        measures=measures(results),
        ranking=rank(results, "c2st", include_controls=False),
        titles=_titles(results, runs),
        runs=runs,
    )
    sections = [
        _verdict(c),
        _warnings(c, notes),
        _samples(c, samples, real),
        _neighbours(c, samples, train),
        *_distances(c),
        _copies(c),
        _anatomy(c),
        Section("usefulness", "Are the images useful?", _optional(side_tables.utility_table(c))),
        Section("cost", "Cost and likelihood", [side_tables.cost_table(c)]),
        _curves(c),
        Section(
            "judges", "Each judge on every generator", _optional(side_tables.cross_table(c)), folded=True
        ),
        Section("glossary", "What the measures mean", [Pairs(wording.GLOSSARY)]),
        Section(
            "settings", "Settings, data and environment", side_tables.settings_blocks(results), folded=True
        ),
    ]
    return Report(
        title, _subtitle(results), [s for s in sections if s.blocks], "Synthetic images: not for diagnosis."
    )


def _titles(results: Mapping[str, Any], runs: Mapping[str, dict]) -> dict[str, str]:
    titles = {n: t for n, (t, _) in wording.CONTROL_TITLES.items()}
    for name in results["rows"]:
        base = name.split("@")[0]
        titles[base] = str((runs.get(name) or runs.get(base) or {}).get("title") or base)
    return {**{n: n for n in results["controls"]}, **titles}


def _subtitle(results: Mapping[str, Any]) -> str:
    d = results["data"]
    people = f" of {d['patients_test']} patients" if d.get("patients_test") else ""
    size = " × ".join(map(str, d["size"]))
    return f"Judged against {d['n_test']} held-out real images{people} at {size} pixels; trained on {d['n_train']}."


def _optional(table: Table | None) -> list[Block]:
    return [] if table is None else [table]


def _verdict(c: Comparison) -> Section:
    sentences = wording.verdict(c.ranking, c.titles)
    check, fine = wording.control_check(c.results["controls"])
    blocks: list[Block] = [Text(" ".join(sentences), "verdict"), Text(check, "good" if fine else "warning")]
    names = [r["name"] for r in c.ranking]
    blocks += [Text(t, "warning") for t in wording.faults(c.pooled, names, c.titles)]
    blocks.append(tables.verdict_table(c))
    dots = []
    for name in c.order:
        e = c.pooled[name]["c2st"]
        if e is not None:
            dots.append((c.titles[name], e["value"], e["low"], e["high"], c.pooled[name]["kind"]))
    if dots:
        blocks.append(
            Picture(
                dots_png(dots, "how often the judge picks the real image (0.5 = guessing, best)", best=0.5),
                "The same as a picture. Dot: the number; line: its 95 % interval; hollow grey: controls; dashed "
                "green: guessing. The further left, the better.",
                "Dot plot of the judge's score for every generator and control; the table above has the numbers.",
                760,
            )
        )
    return Section("verdict", "Verdict", blocks)


def _warnings(c: Comparison, notes: list[str]) -> Section:
    warnings = wording.grouped(c.results.get("warnings", []), c.titles)
    blocks: list[Block] = [Text(w, "warning") for w in warnings]
    return Section("warnings", "Before you believe it", blocks + [Text(n, "note") for n in notes])


def _first_samples(c: Comparison, samples: Mapping[str, Images], name: str) -> tuple[str, Images] | None:
    for key in (*(n for n, _ in c.rows_of(name)), name):
        if key in samples:
            return key, samples[key]
    return None


def _samples(c: Comparison, samples: Mapping[str, Images], real: Images | None) -> Section:
    """Real images first, then every generator: the first ones drawn, not chosen."""
    pictures = []
    if real is not None:
        caption = f"Real, held-out patients ({len(real)} images)"
        pictures.append(_grid(real, caption, "Grid of real images"))
    for r in c.ranking:
        found = _first_samples(c, samples, r["name"])
        if found is not None:
            place = "not judged" if r["rank"] is None else f"place {r['rank']}"
            caption = f"{c.titles[r['name']]} ({place}), samples of run {found[0]}"
            pictures.append(_grid(found[1], caption, f"Grid of generated images of {c.titles[r['name']]}"))
    lead = f"The first {SHOWN} images of each set, in the order in which they were drawn: none was chosen."
    if real is None:
        lead += " Pictures of real images are left out of this report."
    return Section("samples", "Look at them", [Text(lead), Gallery(pictures)] if pictures else [])


def _grid(images: Images, caption: str, alt: str) -> Picture:
    return Picture(grid_png(images, SHOWN), caption, alt, pixelated=True)


def _neighbours(c: Comparison, samples: Mapping[str, Images], train: Images | None) -> Section:
    """The samples that lie closest to a training image, above that image."""
    pictures = []
    for r in c.ranking if train is not None else []:
        for name, row in c.rows_of(r["name"]):
            memory = row["memorisation"].get("image", {})
            pairs = memory.get("nearest", [])
            found = samples.get(name)
            if train is None or found is None or not pairs:
                continue
            top = found.subset(torch.tensor([p["fake"] for p in pairs]))
            bottom = train.subset(torch.tensor([p["train"] for p in pairs]))
            distances = ", ".join(wording.number(p["distance"]) for p in pairs)
            caption = (
                f"{c.titles[r['name']]} ({name}). Distances: {distances}; below "
                f"{wording.number(memory.get('threshold'))} is suspicious."
            )
            alt = "Upper row: generated images. Lower row: the nearest training image of each."
            pictures.append(Picture(pairs_png(top, bottom), caption, alt, pixelated=True))
            break  # one training run of each generator
    if not pictures:
        return Section("neighbours", "", [])
    lead = (
        "For each generator the samples that lie closest to a training image (upper row), each above that "
        "training image (lower row). If a pair shows the same person, the generator has copied."
    )
    return Section("neighbours", "Are they copies? Nearest training images", [Text(lead), Gallery(pictures)])


def _distances(c: Comparison) -> list[Section]:
    """The main feature network in full view, the others folded."""
    lead = Text(
        "These measures compare all generated with all held-out images at once, in the features of a network. "
        "Compare each with the row 'Real against real': no generator can be expected to do better."
    )
    found = tables.distance_tables(c)
    if not found:
        return []
    others = [Section("others", "The same in other feature networks", found[1:], folded=True)]
    return [Section("distances", "How close, and how varied", [lead, found[0]]), *others]


def _copies(c: Comparison) -> Section:
    return Section("copies", "Copies, and left against right", [tables.copies_table(c)])


def _anatomy(c: Comparison) -> Section:
    table = side_tables.anatomy_table(c)
    if table is None:
        return Section("anatomy", "", [])
    lead = (
        "Anatomy measured in the pixels of each image by software: mean and, in small print, the spread between "
        "images. A good generator has the mean and the spread of the real images."
    )
    return Section("anatomy", "Anatomy", [Text(lead), table])


def _curves(c: Comparison) -> Section:
    """One panel per training run that has a metrics.jsonl."""
    pictures, lost = [], 0
    for r in c.ranking:
        for name, facts in c.runs_of(r["name"]):
            path = facts.get("metrics") or facts.get("metrics_path")
            if path is None or not Path(path).exists():
                continue
            curves, broken = read_curves(Path(path))
            lost += broken
            if curves:
                caption = f"{c.titles[r['name']]} ({name})"
                alt = f"Training curves of {name}: {', '.join(curves)}"
                pictures.append(Picture(curves_png(name, curves), caption, alt, 430))
    if not pictures:
        return Section("curves", "", [])
    lead = "Training losses. They show whether a training was stable, not how good the images are."
    if lost:
        lead += f" {lost} unreadable line(s) were left out."
    return Section("curves", "Learning curves", [Text(lead), Gallery(pictures)])
