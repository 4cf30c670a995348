"""Published tables and figures, run again: the system, its baselines, a control that must fail.

Each module has `run(options: Options) -> Iterator[Result]`, one result per file. Results are JSON under
results/ with seed, machine, time and commit; a claim that does not hold is reported as not held.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from verisim.errors import pick

if TYPE_CHECKING:
    from verisim.reproductions.result import Options, Result

REPRODUCTIONS = {
    "demo": "verisim.reproductions.demo",
    "core": "verisim.reproductions.core",
    "002-segmentation": "verisim.reproductions.segmentation_study",
    "000-C5": "verisim.reproductions.report_to_image",
    "000-C5a": "verisim.reproductions.chest_collections",
    "000-C5c": "verisim.reproductions.latent_chests",
    "001": "verisim.reproductions.knee_table",
    "002-preprocessing": "verisim.reproductions.preprocessing_study",
    "002-resources": "verisim.reproductions.resources_study",
    "001-inside": "verisim.reproductions.knee_inside",
    "002-growth": "verisim.reproductions.growth",
    "002-visits": "verisim.reproductions.two_visits",
    "002-coordinates": "verisim.reproductions.coordinate_networks",
    "002-detection": "verisim.reproductions.head_ct_detection",
    "004": "verisim.reproductions.cxr_comparison",
    "004-mark": "verisim.reproductions.cxr_mark",
    "004-artefact": "verisim.reproductions.cxr_artefact",
    "004-sweeps": "verisim.reproductions.cxr_sweeps",
    "004-background": "verisim.reproductions.cxr_background",
    "004-sizes": "verisim.reproductions.cxr_sizes",
    "004-utility": "verisim.reproductions.cxr_utility",
    "16-bench": "verisim.reproductions.volumes_bench",
    "16-masked": "verisim.reproductions.masked_transformer",
    "17-few": "verisim.reproductions.few_steps",
    "phantoms": "verisim.reproductions.phantom_rulers",
}


def reproduction(name: str) -> Callable[[Options], Iterator[Result]]:
    """The run function of a reproduction."""
    return importlib.import_module(pick(REPRODUCTIONS, name, "reproduction")).run
