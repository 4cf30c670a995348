"""The smaller tables of a comparison report: anatomy, usefulness, cost, cross matrix, settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from verisim.reports.blocks import Block, Cell, Column, Pairs, Row, Table, Text
from verisim.reports.tables import MISSING, estimate_cell
from verisim.reports.wording import duration, number

if TYPE_CHECKING:
    from verisim.reports.comparison import Comparison

ANATOMY = {
    "laterality": ("Heart side", "above 0: heart at the image right"),
    "cardiothoracic_ratio": ("Cardiothoracic ratio", "heart / chest width"),
    "lung_darkness": ("Lung darkness", "0 = as bright as the heart"),
    "symmetry": ("Symmetry", "of the upper chest"),
    "sharpness": ("Sharpness", "fine detail / all detail"),
    "midline": ("Midline", "0 = middle of the image"),
}


def anatomy_table(c: Comparison) -> Table | None:
    found: Mapping[str, Mapping[str, Any]] = c.results.get("anatomy") or {}
    if not found:
        return None
    keys = list(dict.fromkeys(k for v in found.values() for k in v))
    columns = [Column(*ANATOMY.get(k, (k, ""))) for k in keys]
    rows = []
    for name, values in found.items():
        base = name.split("@")[0]
        title = (
            Cell("Real images", "held-out patients")
            if name == "real"
            else Cell(c.titles.get(base, name), name)
        )
        cells = []
        for key in keys:
            v = values.get(key)
            if v is None or v.get("mean") is None:
                cells.append(MISSING)
            else:
                cells.append(Cell(number(v["mean"]), f"± {number(v['std'])}"))
        rows.append(Row([title, *cells], "best" if name == "real" else ""))
    return Table([Column("Set"), *columns], rows, "Mean ± standard deviation between images.")


def utility_table(c: Comparison) -> Table | None:
    found: Mapping[str, Mapping[str, Any]] = c.results.get("utility") or {}
    if not found:
        return None
    columns = [
        Column("Generator"),
        Column("Trained on real", "AUC on real; reference"),
        Column("Trained on synthetic", "AUC on real (TSTR)"),
        Column("Real reader, synthetic images", "AUC (TRTS)"),
        Column("Trained on both", "AUC on real"),
        Column("Gain", "both minus real alone"),
    ]
    rows = []
    for name, u in found.items():
        cells = [
            estimate_cell((u.get(k) or {}).get("auc"), str(u.get("reason", "not measured")))
            for k in ("trtr", "tstr", "trts", "real_plus_synthetic")
        ]
        gain = estimate_cell(u.get("gain_auc"), str(u.get("reason", "not measured")))
        rows.append(Row([Cell(c.titles.get(name.split("@")[0], name), name), *cells, gain]))
    return Table(
        columns, rows, "A classifier for the label, tested on held-out images. AUC: 0.5 guessing, 1 best."
    )


def cost_table(c: Comparison) -> Table:
    columns = [
        Column("Run"),
        Column("Parameters"),
        Column("Training time"),
        Column("Training steps"),
        Column("Images per second", "when sampling"),
        Column("Bits per pixel value", "fewer is better"),
    ]
    rows = []
    for r in c.ranking:
        found = c.runs_of(r["name"]) or [(r["name"], {})]
        for run, f in found:
            parameters, seconds = (
                f.get("parameters", f.get("params")),
                f.get("seconds", f.get("train_seconds")),
            )
            clock = "processor time" if f.get("clock") == "cpu" else ""
            cells = [
                Cell(c.titles[r["name"]], run),
                MISSING if parameters is None else Cell(f"{parameters:,}"),
                MISSING if seconds is None else Cell(duration(seconds), clock),
                MISSING if f.get("steps") is None else Cell(f"{f['steps']:,}"),
                MISSING if f.get("samples_per_second") is None else Cell(number(f["samples_per_second"])),
                _bits_cell(f.get("likelihood")),
            ]
            rows.append(Row(cells))
    return Table(columns, rows, "As measured on the machine named under settings.")


def _bits_cell(likelihood: Mapping[str, Any] | None) -> Cell:
    if likelihood is None:
        return Cell("–", "this kind of model has no likelihood", "missing")
    bits = likelihood.get("bits_per_dim")
    if bits is None:
        return Cell("–", str(likelihood.get("reason", "not measured")), "missing")
    prefix = "at most " if likelihood.get("upper_bound") else ""
    spread = f"± {number(1.96 * likelihood['se'])}" if likelihood.get("se") is not None else ""
    return Cell(prefix + number(bits), spread)


def cross_table(c: Comparison) -> Table | None:
    cross = c.results.get("cross") or {}
    if not cross.get("judges"):
        return None

    def title(name: str) -> str:
        base, at, seed = name.partition("@")
        return c.titles.get(base, base) + (f" ({seed})" if at else "")

    columns = [Column("Judge trained on"), *(Column(title(n)) for n in cross["samples"])]
    rows = []
    for judge, line in zip(cross["judges"], cross["auc"], strict=True):
        shades = [min(1.0, 2 * abs(v - 0.5)) for v in line]
        cells = [Cell(number(v), shade=s) for v, s in zip(line, shades, strict=True)]
        rows.append(Row([Cell(title(judge)), *cells]))
    caption = (
        "Row: whom the judge was trained to catch. Column: whose images it is shown. 0.5 = does not notice, 1 = "
        "always notices, below 0.5 = takes them for more real than real ones."
    )
    return Table(columns, rows, caption)


def settings_blocks(results: Mapping[str, Any]) -> list[Block]:
    from verisim.training.run_folder import environment

    blocks: list[Block] = [
        Text("Evaluation settings, the same for all rows."),
        Pairs(flat(results["settings"])),
    ]
    blocks += [Text("Data."), Pairs(flat(results["data"])), Text("Feature networks.")]
    blocks += [Pairs(flat(n)) for n in results["networks"]]
    blocks += [Text("Environment."), Pairs(flat(results.get("environment") or environment()))]
    if results.get("seconds") is not None:
        blocks.append(Text(f"The evaluation took {duration(results['seconds'])}."))
    return blocks


def flat(d: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text."""
    return [(str(k).replace("_", " "), _plain(v)) for k, v in d.items()]


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)
