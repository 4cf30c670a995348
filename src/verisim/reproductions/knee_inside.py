"""Source 001, sections 5.6 and 6, with its outlook: what is inside the autoencoders of Table 6.1, measured on knee phantoms.

Factors of phantoms are known, so what a latent or a code holds and what a map finds can be counted. The runs are those of
`001` on phantoms at the same scale, in the same folders, so that nothing is trained twice; a sweep of beta comes on top. All
that is measured is measured on phantoms of other seeds, and each number stands beside a control that must fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from verisim.data.folder import Dataset
from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.hub.weights import load_model
from verisim.metrics.memo import Measured, Memo
from verisim.phantoms.base import Phantom
from verisim.reproductions.knee_inside_anomaly import BASELINES, Cases, anomaly_row, cases, ranked
from verisim.reproductions.knee_inside_claims import claims
from verisim.reproductions.knee_inside_codes import code_row
from verisim.reproductions.knee_inside_figures import write_figures
from verisim.reproductions.knee_inside_latents import latent_row
from verisim.reproductions.knee_inside_phantoms import LOOKS, PROBED, SEEDS, Looks, Reader, fresh
from verisim.reproductions.knee_inside_selection import EVERY, selection_job, selection_row
from verisim.reproductions.knee_inside_selection import NAME as SELECTION
from verisim.reproductions.knee_table import SCALES, Scale, knee_data, knee_job, knee_jobs
from verisim.reproductions.result import Options, Result
from verisim.reproductions.runs import Job, train_all
from verisim.roles import AnomalyDetector, CodeSpace
from verisim.tasks.anomaly import ReconstructionDetector
from verisim.tasks.autoencoding import reconstruction_scores
from verisim.training.checkpoint import read_metadata
from verisim.training.source import DataSettings, open_dataset

TABLE = ("K-S1", "K-S2", "K-S3", "K-S4", "K-S5", "K-S6", "K-S7", "K-S8", "K-S9.1")
SWEEP = "K-S9.2"
SYSTEMS = (*TABLE, SWEEP, SELECTION)
BETAS = {"0.1": "-0.1", "0.3": "-0.3", "3": "", "10": "-10"}  # ending of the recipe's variant; beta 1 is K-S1


@dataclass(frozen=True)
class Setting:
    """What every model is looked at with."""

    train: Images  # what it learnt from
    known: Phantom  # to probe
    moved: Phantom  # to move and to swap
    reader: Reader
    cases: Cases
    looks: Looks


def run(options: Options) -> Iterator[Result]:
    """Train what `001` has not trained yet, then look inside; one result per size."""
    if options.data:
        raise VerisimError(
            "001-inside measures against the factors of knee phantoms, which real images do not have; leave out --data. "
            "For a folder use 'verisim explore probe RUN --data.label COLUMN' and 'verisim detect RUN'."
        )
    scale = options.changed(SCALES[options.scale])
    systems = options.chosen(SYSTEMS)
    for size in options.sizes or (scale.size,):
        yield _inside(options, replace(scale, size=size), systems)


def inside_jobs(out: Path, data: DataSettings, systems: tuple[str, ...], scale: Scale) -> list[Job]:
    """The runs of Table 6.1 that were asked for, and those of the sweep, as K-S9.2-BETA@SEED."""
    wanted = knee_jobs(out, data, tuple(s for s in systems if s in TABLE), scale)
    if SWEEP in systems:
        for seed in range(scale.seeds):
            for beta, ending in BETAS.items():
                variant = f"{scale.variant}{ending}"
                wanted.append(knee_job(out, data, SWEEP, variant, f"{SWEEP}-{beta}", seed, scale))
    return wanted


def _inside(options: Options, scale: Scale, systems: tuple[str, ...]) -> Result:
    data, looks = knee_data(options, scale), LOOKS[options.scale]
    wanted = inside_jobs(options.out, data, systems, scale)
    curved = [
        selection_job(options.out, data, scale, seed, EVERY[options.scale])
        for seed in range(scale.seeds if SELECTION in systems else 0)
    ]
    train_all([*wanted, *curved])
    dataset = open_dataset(data)
    setting = _setting(dataset["train"].quantise(), looks, scale.size)
    memo, console = Memo(options.out / "measured"), Console(stderr=True)
    rows, found = {}, {}
    for i, job in enumerate(wanted, start=1):
        name = job.folder.name
        console.print(f"001-inside: {i}/{len(wanted)} {name}", markup=False, highlight=False)
        rows[name], found[name] = _looked_into(job.folder, setting, memo)
    plain = {}
    for name, make in BASELINES.items():
        plain[name], found[name] = _watched(name, partial(make, setting.train), setting, memo)
    chosen = {
        job.folder.name: _selected(job.folder, seed, dataset, looks, memo) for seed, job in enumerate(curved)
    }
    legible = setting.reader.legible(setting.known)
    numbers = {
        "rows": rows,
        "baselines": plain,
        "ranking": ranked(found),
        "legible": legible,
        "selection": chosen,
    }
    result = Result("001-inside", options.scale, claims(numbers), {str(scale.size): numbers}, _notes(scale, looks),
                   part=f"{scale.size}px")  # fmt: skip
    write_figures([j.folder for j in wanted], setting, numbers, options.results / "figures" / result.name)
    return result


def _setting(train: Images, looks: Looks, size: int) -> Setting:
    known, moved = (fresh(k, getattr(looks, k), size) for k in ("probe", "moved"))
    return Setting(train, known, moved, Reader(size), cases(looks, size), looks)


def _looked_into(folder: Path, setting: Setting, memo: Memo) -> Measured:
    """All numbers of one run, and its anomaly scores, measured or remembered."""
    digest = read_metadata(folder / "weights.safetensors")["sha256"]

    def measure() -> Measured:
        model: Any = load_model(folder, "cpu")[0]
        known, moved, reader = setting.known, setting.moved, setting.reader
        told = reconstruction_scores(model, known.images)
        row: dict[str, Any] = {k: told[k] for k in ("mse_1e-5", "rate_bits")}
        if isinstance(model, CodeSpace):
            row["codes"] = code_row(model, known, moved, reader)
        else:
            row["latents"] = latent_row(model, setting.train, known, moved, reader, setting.looks.latents)
        return row, {}

    row = memo.fetch(["inside", digest, setting.looks, SEEDS, setting.train], measure)[0]
    row["anomaly"], found = _watched(digest, partial(_reconstructing, folder), setting, memo)
    return row, found


def _watched(key: str, detector: Callable[[], AnomalyDetector], setting: Setting, memo: Memo) -> Measured:
    """anomaly_row of a detector that is made only if it has to be measured."""
    parts = ["anomaly", key, setting.looks, SEEDS, setting.train]
    return memo.fetch(parts, lambda: anomaly_row(detector(), setting.cases, setting.train))


def _reconstructing(folder: Path) -> AnomalyDetector:
    model: Any = load_model(folder, "cpu")[0]
    return ReconstructionDetector(model)


def _selected(folder: Path, seed: int, dataset: Dataset, looks: Looks, memo: Memo) -> dict[str, Any]:
    """The curve of a run and what either rule would report of it, measured or remembered."""
    test = dataset["test"]
    digest = read_metadata(folder / "weights.safetensors")["sha256"]

    def measure() -> Measured:
        images = fresh("selection", looks.selection, test.spec.size[0]).images
        return selection_row(folder, dataset, images, seed), {}

    return memo.fetch(["selection", digest, looks, SEEDS, test], measure)[0]


def _notes(scale: Scale, looks: Looks) -> list[str]:
    minutes = f"{scale.minutes:g} processor minutes" if scale.minutes else "the recipe's own budget"
    return [
        f"{minutes} and one thread per run, {scale.seeds} training seed(s); runs as in 001 on {scale.phantoms} knee phantoms",
        "all but K-S6 and K-S7 were told the grade in training (in the decoder); here they are not",
        f"probes: linear, five folds, {looks.probe} phantoms of another seed; factors {', '.join(PROBED)}",
        f"traversals: {looks.moved} other phantoms, the {looks.latents} latents of largest KL (largest spread without KL), "
        "-3 to 3 standard deviations of the aggregate posterior; the factor that a latent moves most is chosen on one half "
        "of the phantoms and measured on the other; effects in standard deviations of the factor over phantoms",
        f"anomalies: discs in {looks.planted} phantoms, {looks.normal} without; thresholds from {looks.calibration} others",
        "intervals: 95 %, over phantoms; MIG: jackknife of ten blocks",
    ]
