"""How the images of a trained run were read, to read others the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verisim.data.intensity import Window
from verisim.data.readers import read_image
from verisim.data.single import Reading
from verisim.data.spec import ImageSpec
from verisim.training.run_folder import RunFolder
from verisim.training.source import DataSettings, open_dataset


def settings_of(source: Path | str) -> DataSettings:
    """The data settings of a run folder; the defaults for a weights file."""
    run = RunFolder(source)
    return DataSettings(**run.config()["data"]) if run.config_path.exists() else DataSettings()


def reading_of(source: Path | str, spec: ImageSpec, paths: Sequence[Path]) -> Reading:
    """How the images of `source` (run folder or weights file) were read, as far as the files `paths` need it.

    Runs write black and white down; of an older one, whose files do not fix them, the images are read again.
    """
    run, data = RunFolder(source), settings_of(source)
    other: Window = None if data.low == data.high else (data.low, data.high)
    window = run.config().get("window") if run.config_path.exists() else {}
    if window is None:  # an older run
        fixed = other is not None or all(read_image(p).range is not None for p in paths)
        window = {} if fixed or not data.folder else open_dataset(data).window
    return Reading(spec, window, data.contrast_names, other, data.fit, data.enlarge, strict=True)
