"""The main job on built-in data in minutes: four model families on chest phantoms, judged, one report."""

from __future__ import annotations

from collections.abc import Iterator

from verisim.reproductions.cxr_comparison import CORRECTED, Scale, run_at
from verisim.reproductions.result import Options, Result

SCALES = {
    "smoke": Scale((32,), 1, 1.5, "small", 300, "quick", 2000),
    "small": Scale((32,), 1, 4.0, "small", 500, "full", 2500),
    "full": Scale((64,), 1, 0.0, "full", 2000, "full", 20000),
}


def run(options: Options) -> Iterator[Result]:
    """The corrected systems of source 004 on phantoms, one seed."""
    return run_at(options, SCALES[options.scale], "demo", tuple(CORRECTED.values()))
