"""Are synthetic images of use to a classifier (source 004, E5)? Trained with them, tested on real patients.

Beside every generator stand the classifier that saw real images only, and one whose labels were shuffled,
which must be at chance: else the test leaks and nothing here should be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from verisim.data.folder import Dataset
from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.hub.weights import read_card, resolve
from verisim.metrics.judges import JudgeSettings
from verisim.metrics.utility import (
    Scores,
    check_labels,
    gain,
    join,
    shuffled_labels,
    train_and_test,
)
from verisim.seeding import generator as seeded
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant, from_model, locate, read_folder, reads_texts
from verisim.training.run_folder import environment

CHANCE = 0.5


@dataclass(frozen=True)
class UtilitySettings:
    """How usefulness is measured; the same for all generators."""

    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # synthetic images added per real training image
    n_seeds: int = 3  # classifiers per experiment
    steps: int = 300  # training steps of a classifier
    width: int = 16  # channels of its first convolution
    bootstrap: int = 1000  # resamples of an interval, over patients
    permutations: int = 5  # label shufflings of the control
    seed: int = 0

    def __post_init__(self) -> None:
        if any(r <= 0 for r in self.ratios):
            raise VerisimError(f"ratios are {list(self.ratios)}; each must be above 0.")
        for name in ("n_seeds", "steps", "width", "bootstrap", "permutations"):
            if getattr(self, name) < 1:
                raise VerisimError(f"{name} is {getattr(self, name)}; it must be at least 1.")


def labelled_source(path: str, n: int, dataset: Dataset, column: str, seed: int) -> Contestant:
    """A run (n images by training frequency of its classes), or a folder with class names in `column`.

    A text model is asked for texts of the training images, and its images have the labels of those. VerisimError where its classes are not those of the real images.
    """
    (where, is_model), real = locate(path), held_out(dataset)
    if is_model:
        if reads_texts(where) and dataset["train"].texts is not None:
            return from_model(where, where.name, n, real, seed=seed, asked=dataset["train"])
        card = read_card(resolve(where))
        if tuple(card.class_names) != dataset.class_names:
            has = ", ".join(card.class_names) or "none (train it with --data.label)"
            raise VerisimError(
                f"{path} knows other classes than the real images ({', '.join(dataset.class_names)}): {has}."
            )
        return from_model(where, where.name, n, real, seed=seed)
    found = read_folder(where, real.spec, dataset.contrasts, column)
    odd = [c for c in found.class_names if c not in dataset.class_names]
    if odd:
        raise VerisimError(
            f"{path}: class '{odd[0]}' of column '{column}' is none of the real images' classes "
            f"({', '.join(dataset.class_names)})."
        )
    images = found["all"]
    place = torch.tensor([dataset.class_names.index(c) for c in found.class_names])
    chosen = torch.randperm(len(images), generator=seeded("utility folder", seed))[:n]
    labels = place[check_labels(images, path)]
    made = Images(images.pixels, real.spec, labels, images.patients, images.names).subset(chosen)
    return Contestant(where.name, made.quantise(), {"family": "folder"})


def measure_utility(
    contestants: Sequence[Contestant],
    dataset: Dataset,
    settings: UtilitySettings,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """All experiments of all generators as a JSON-able dict; docs/evaluation.md describes it."""
    names = [c.name for c in contestants]
    if not names or len(set(names)) < len(names):
        raise VerisimError(f"Give at least one set of images, each under its own name; got: {names}.")
    train, test = dataset["train"].quantise(), held_out(dataset)
    check_labels(train, "training set")
    judge = JudgeSettings(steps=settings.steps, width=settings.width)

    def run(a: Images, b: Images) -> Scores:
        return train_and_test(a, b, judge, settings.seed, settings.n_seeds, settings.bootstrap)

    progress("real images alone")
    trtr = run(train, test)
    progress("control: shuffled labels")
    control = shuffled_labels(train, test, judge, settings.seed, settings.permutations, settings.bootstrap)
    rows = {}
    for c in contestants:
        progress(c.name)
        try:
            rows[c.name] = _row(c, train, test, trtr, settings, run)
        except VerisimError as e:
            rows[c.name] = {"value": None, "reason": str(e)}
    results = {
        "schema": "verisim.utility/1",
        "settings": {**asdict(settings), "ratios": list(settings.ratios)},
        "data": {
            "classes": list(dataset.class_names),
            "n_train": len(train),
            "n_test": len(test),
            "patients_test": len(set(test.patients)) if test.patients else None,
            "size": list(train.spec.size),
            "fingerprint": dataset.fingerprint,
        },
        "trtr": trtr.as_dict(),
        "shuffled": {"auc": control.as_dict()},
        "rows": rows,
        "facts": {c.name: c.facts for c in contestants},
        "environment": environment(),
    }
    return {**results, "warnings": _warnings(results)}


def _row(
    c: Contestant,
    train: Images,
    test: Images,
    trtr: Scores,
    settings: UtilitySettings,
    run: Callable[[Images, Images], Scores],
) -> dict[str, Any]:
    """TSTR, TRTS and the gain at every ratio of one generator."""
    check_labels(c.images, f"images of {c.name}")
    made = replace(c.images, patients=None)  # synthetic images belong to nobody
    order = torch.randperm(len(made), generator=seeded("utility order", settings.seed))
    gains = []
    for ratio in settings.ratios:
        k = round(ratio * len(train))
        entry: dict[str, Any] = {"ratio": ratio, "n_synthetic": k}
        if k > len(made):
            reason = f"{len(made)} images; this ratio needs {k}. Draw more with -n"
            gains.append({**entry, "value": None, "reason": reason})
            continue
        both = run(join(train, made.subset(order[:k])), test)
        gains.append({**entry, **both.as_dict(), "gain_auc": gain(both, trtr).as_dict()})
    return {
        "n_synthetic": len(made),
        "tstr": run(made, test).as_dict(),
        "trts": run(train, made).as_dict(),
        "gains": gains,
    }


def _warnings(results: dict[str, Any]) -> list[str]:
    """What must be known before the numbers are believed."""
    out = []
    control, real = results["shuffled"]["auc"], results["trtr"]["auc"]
    if not control["low"] <= CHANCE <= control["high"]:
        out.append(
            f"Control failed: with shuffled labels the classifier has an AUC of {control['value']:.2f} "
            f"({control['low']:.2f} to {control['high']:.2f}) instead of 0.5. Do not believe the other numbers."
        )
    if real["low"] <= CHANCE:
        out.append(
            f"Real images alone do not teach this label (AUC {real['value']:.2f}, {real['low']:.2f} to "
            f"{real['high']:.2f}): there is nothing that synthetic images could be measured by."
        )
    out += [f"{n}: {r['reason']}" for n, r in results["rows"].items() if "reason" in r]
    return out
