"""Source 002: preprocessing of head CT, readers' agreement and utilities (spec 002, A.6 to A.8, Q), where the truth is planted.

Nothing is trained. Heads are moved by known motions and registered back; scanners' grey values are changed and equalised;
masks are compared with the phantom's own; readers have known error rates; files go round in all orientations. Every row has
a control that must fail: another head, noise, a change that is not monotone, an affine that is ignored, readers who guess.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

from verisim.data.align import carried
from verisim.data.atomic import atomic_write
from verisim.data.mosaic import save_mosaic
from verisim.errors import VerisimError
from verisim.phantoms import moved_heads
from verisim.phantoms.head_ct import WINDOW
from verisim.phantoms.moved_heads import shown
from verisim.reports.figures import COLOURS, DASHES, figure_png
from verisim.reproductions import preprocessing_grey as grey
from verisim.reproductions import preprocessing_readers as readers
from verisim.reproductions import preprocessing_tools as tools
from verisim.reproductions.preprocessing_claims import claims
from verisim.reproductions.preprocessing_registration import (
    SEED,
    Plan,
    masks,
    methods,
    planted_tilt,
    sweep,
)
from verisim.reproductions.result import Options, Result

MORE_TURNS = (5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 180.0)


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    registered: dict[str, Plan]  # "2D", "3D"
    masked: dict[str, Plan]
    grey_heads: int  # as many again are the reference
    grey_size: tuple[int, ...]
    studies: int  # of readers
    scans: int  # per study
    few: int  # studies of 86 scans
    side: int  # of the volume that is drawn in pieces
    draws: int  # of points; a thousand times as many crops
    steps: int  # of the training that is stopped half way


SCALES = {
    "smoke": Scale(
        {"2D": Plan((32, 32), 2, (10.0,), (10.0,), ())},
        {"2D": Plan((48, 48), 2, (), (), (20.0,))},
        4, (32, 32), 4, 1000, 20, 12, 5, 6,
    ),
    "small": Scale(
        {
            "2D": Plan((48, 48), 4, MORE_TURNS, (10.0, 20.0, 40.0, 80.0), ()),
            "3D": Plan((32, 32, 32), 2, (5.0, 10.0, 20.0, 45.0, 90.0), (10.0, 40.0), ()),
        },
        {
            "2D": Plan((64, 64), 6, (), (), (10.0, 20.0, 30.0)),
            "3D": Plan((40, 40, 40), 2, (), (), (20.0,)),
        },
        8, (64, 64), 20, 2000, 200, 24, 50, 40,
    ),
    "full": Scale(
        {
            "2D": Plan((128, 128), 15, MORE_TURNS, (10.0, 20.0, 40.0, 80.0), ()),
            "3D": Plan((96, 96, 96), 15, MORE_TURNS, (10.0, 20.0, 40.0, 80.0), ()),
        },
        {
            "2D": Plan((128, 128), 15, (), (), (10.0, 20.0, 30.0)),
            "3D": Plan((96, 96, 96), 15, (), (), (10.0, 20.0, 30.0)),
        },
        8, (128, 128), 100, 4000, 1000, 64, 1000, 400,
    ),
}  # fmt: skip


def run(options: Options) -> Iterator[Result]:
    """Plant, mend, measure; one result."""
    if options.data:
        raise VerisimError("002-preprocessing needs to know what was planted, and runs on phantoms. Leave out --data.")  # fmt: skip
    scale = SCALES[options.scale]
    numbers = measured(scale)
    known = methods()
    notes = [
        "heads of the head CT phantom, drawn twice as fine; two scans of a head share neither grid nor noise; seeds "
        f"{SEED} and {grey.SEED}, while registration by mutual information was mended on heads of seeds 0 and 21",
        "recovered: every pixel of the head comes back to within a pixel; intervals are of the bootstrap over heads",
        "turns are about random axes (in 3D) and go with a shift of 5 mm, shifts with a turn of 5 degrees",
        "readers' published AUROCs and kappas are taken as of the 86 scans tested; the specification does not say which "
        "scans they are of",
    ]
    if "mutual information" not in known:
        notes.append("SimpleITK is not installed: registration by mutual information was left out")
    result = Result("002-preprocessing", options.scale, claims(numbers), numbers, notes)
    folder = options.results / "figures" / result.name
    atomic_write(folder / "capture.png", capture_png(numbers["registration"]))
    draw_heads(folder / "heads.png", next(iter(scale.masked.values())))
    yield result


def measured(scale: Scale) -> dict[str, Any]:
    """All numbers of the study."""
    numbers: dict[str, Any] = {"registration": {}, "masks": {}}
    for dims, plan in scale.registered.items():
        _say(f"registration, {dims}")
        numbers["registration"][dims] = sweep(plan)
    for dims, plan in scale.masked.items():
        _say(f"masks, {dims}")
        numbers["masks"][dims] = masks(plan)
    _say("grey values, readers, utilities")
    numbers |= {
        "changes": grey.changes(scale.grey_heads, scale.grey_size),
        "ranks": grey.ranks(scale.grey_size),
        "contrast": grey.contrast(scale.grey_heads, scale.grey_size),
        "windows": grey.windows(scale.grey_heads, scale.grey_size),
        "readers": readers.simulated(scale.studies, scale.scans, scale.few),
        "published": readers.published(),
        "margins": readers.margins(),
        "pieces": tools.pieces(scale.side),
        "points": tools.drawn_points(scale.draws),
        "crops": tools.crop_places(1000 * scale.draws),
        "ensemble": tools.ensemble(),
        "scale": asdict(scale),
    }
    with tempfile.TemporaryDirectory() as folder:
        numbers["resuming"] = tools.resuming(Path(folder), scale.steps)
        numbers["orientations"] = tools.orientations(Path(folder))
    return numbers


def _say(what: str) -> None:
    Console(stderr=True).print(f"002-preprocessing: {what}", highlight=False)


def capture_png(rows: dict[str, Any]) -> bytes:
    """Share of heads that are recovered, by turn and by shift."""
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, kind, unit in zip(axes, ("turn", "shift"), ("degrees", "mm")):
        curves = [(d, m) for d, found in rows.items() for m in found]
        for k, (dims, method) in enumerate(curves):
            levels = rows[dims][method]["levels"]
            mine = [(float(n.split()[1]), r["recovered"]["value"]) for n, r in levels.items() if n.startswith(kind)]  # fmt: skip
            ax.plot(*zip(*mine), "o" + DASHES[k % 4], color=COLOURS[k], label=f"{dims}, {method}", ms=4, lw=1.4)  # fmt: skip
        ax.set(xlabel=f"planted {kind}, {unit}", ylim=(-0.05, 1.05))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of heads recovered")
    axes[0].legend(fontsize=8, frameon=False)
    return figure_png(figure)


def draw_heads(path: Path, plan: Plan) -> None:
    """Reference, a head as it lies, tilted, and registered to the reference."""
    heads = moved_heads.make(2, SEED, plan.size)
    tilt = planted_tilt(plan.size, max(plan.tilts))
    fixed, still, moving = (
        shown(heads.scan(k, m, s), WINDOW) for k, m, s in ((1, None, 3), (0, None, 2), (0, tilt, 2))
    )
    found = list(methods().values())[-1](moving, fixed, (heads.mm,) * len(plan.size))
    back, _ = carried(moving, found.matrix, plan.size)
    save_mosaic(path, torch.stack([fixed, still, moving, back]), 4, scale=2)
