"""Are synthetic images of use to those who learn from X-rays (source 004, E5)? Trained with them, tested on real patients.

Who learns is one of `verisim.tasks.downstream`: by default a small classifier. Beside every generator stand the one
that saw real images only, and a control: shuffled labels, which must be at chance, or something leaks and nothing here
should be believed; or, for detectors that learn from normal images and need no other labels, noise images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from verisim.data.folder import Dataset
from verisim.data.spec import Images
from verisim.errors import VerisimError, pick
from verisim.hub.weights import read_card, resolve
from verisim.metrics.judges import JudgeSettings
from verisim.metrics.utility import Scores, check_kinds, check_labels, gain, join
from verisim.seeding import generator as seeded
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant, from_model, locate, read_folder, reads_texts
from verisim.tasks.downstream import DOWNSTREAM, DownstreamSettings, normal_class
from verisim.tasks.downstream.experiment import Experiment, Trained
from verisim.training.run_folder import environment

CHANCE = 0.5
CLASSIFIER = "classifier"  # the task whose numbers stand at the top of the results


@dataclass(frozen=True)
class UtilitySettings:
    """How usefulness is measured; the same for all generators."""

    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # synthetic images added per real training image
    n_seeds: int = 3  # networks per experiment
    steps: int = 300  # training steps of a small classifier
    width: int = 16  # channels of a network's first convolution; DenseNet has growth
    bootstrap: int = 1000  # resamples of an interval, over patients
    permutations: int = 5  # label shufflings of the control
    seed: int = 0
    tasks: tuple[str, ...] = (CLASSIFIER,)  # keys of DOWNSTREAM
    normal: str = (
        ""  # class that detectors learn from; empty = the only one named like 'normal' or 'no finding'
    )
    detector_steps: int = 300  # training steps of a detector, or of its part that learns from normal images
    densenet_steps: int = 300  # training steps of DenseNet-121, of 16 images each
    growth: int = 32  # channels that each of its layers adds: 32 = CheXNet; 8 is much faster

    def __post_init__(self) -> None:
        if any(r <= 0 for r in self.ratios):
            raise VerisimError(f"ratios are {list(self.ratios)}; each must be above 0.")
        for name in (
            "n_seeds", "steps", "width", "bootstrap", "permutations", "detector_steps", "densenet_steps", "growth",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise VerisimError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.tasks:
            raise VerisimError(f"No task given. Known: {', '.join(DOWNSTREAM)}.")
        for task in self.tasks:
            pick(DOWNSTREAM, task, "task")

    def experiments(self, class_names: Sequence[str]) -> list[Experiment]:
        """One per task, each task once. VerisimError if one needs a normal class and there is none."""
        wanted = list(dict.fromkeys(self.tasks))
        needed = any(DOWNSTREAM[t].needs_normal for t in wanted)
        normal = normal_class(class_names, self.normal) if needed else None
        judge, d = JudgeSettings(steps=self.steps, width=self.width), DownstreamSettings()
        densenet = replace(d.densenet, steps=self.densenet_steps)
        how = DownstreamSettings(judge, densenet, self.growth, self.detector_steps, width=self.width)
        return [Experiment(t, normal, how, self.seed, self.n_seeds, self.bootstrap) for t in wanted]


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
    experiments = settings.experiments(dataset.class_names)
    for e in experiments:
        e.check(train, "training set")
        e.check_test(train, test)
    found = {e.name: _task(e, contestants, train, test, settings, progress) for e in experiments}
    results = {
        "schema": "verisim.utility/1",
        "settings": {**asdict(settings), "ratios": list(settings.ratios), "tasks": list(settings.tasks)},
        "data": {
            "classes": list(dataset.class_names),
            "n_train": len(train),
            "n_test": len(test),
            "patients_test": len(set(test.patients)) if test.patients else None,
            "size": list(train.spec.size),
            "fingerprint": dataset.fingerprint,
        },
        "facts": {c.name: c.facts for c in contestants},
        "environment": environment(),
        "warnings": [],
    }
    if first := found.pop(CLASSIFIER, None):
        results.update({k: first[k] for k in ("trtr", "rows", "warnings")})
        results["shuffled"] = {"auc": first["control"]["auc"]}
    if found:
        results["tasks"] = {
            e.name: {**_described(e, dataset, train), **found[e.name]} for e in experiments if e.name in found
        }
    return results


def _task(e: Experiment, *parts: Any) -> dict[str, Any]:
    """_measure, or why a task could not be measured; the others are not lost by it."""
    try:
        return _measure(e, *parts)
    except VerisimError as error:
        if e.name == CLASSIFIER:
            raise
        return {"value": None, "reason": str(error), "warnings": []}


def _described(e: Experiment, dataset: Dataset, train: Images) -> dict[str, Any]:
    """What a task is, beside its numbers."""
    user, normal = e.user, e.normal
    assert train.labels is not None
    about: dict[str, Any] = {
        "title": user.title,
        "meaning": user.meaning,
        "output": user.output,
        "learns_from": user.learns_from,
        "normal": None,
    }
    if user.needs_normal and normal is not None:
        about["normal"] = dataset.class_names[normal]
        about["n_normal_train"] = int((train.labels == normal).sum())
    return about


def _measure(
    e: Experiment,
    contestants: Sequence[Contestant],
    train: Images,
    test: Images,
    settings: UtilitySettings,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Reference, control, rows and warnings of one task."""
    task = "" if e.name == CLASSIFIER else f"{e.name}: "
    progress(f"{task}real images alone")
    real = e.train(train)
    trtr = e.test(real, test)
    progress(f"{task}control: {e.control_kind}")
    control = e.control(train, test, trtr, settings.permutations)
    rows = {}
    for c in contestants:
        progress(f"{task}{c.name}")
        try:
            rows[c.name] = _row(e, c, real, test, trtr, settings)
        except VerisimError as error:
            rows[c.name] = {"value": None, "reason": str(error)}
    results = {"trtr": trtr.as_dict(), "control": control, "rows": rows}
    return {**results, "warnings": _warnings(results, e)}


def _row(
    e: Experiment, c: Contestant, real: Trained, test: Images, trtr: Scores, settings: UtilitySettings
) -> dict[str, Any]:
    """TSTR, TRTS and the gain at every ratio of one generator."""
    e.check(c.images, f"images of {c.name}")
    made = replace(c.images, patients=None)  # synthetic images belong to nobody
    order = torch.randperm(len(made), generator=seeded("utility order", settings.seed))
    gains = []
    for ratio in settings.ratios:
        k = round(ratio * len(real.images))
        entry: dict[str, Any] = {"ratio": ratio, "n_synthetic": k}
        if k > len(made):
            reason = f"{len(made)} images; this ratio needs {k}. Draw more with -n"
            gains.append({**entry, "value": None, "reason": reason})
            continue
        added = made.subset(order[:k])
        both = e.run(join(real.images, added), test)
        gains.append(
            {**entry, **_normals(e, added), **both.as_dict(), "gain_auc": gain(both, trtr).as_dict()}
        )
    return {
        "n_synthetic": len(made),
        **_normals(e, made),
        "tstr": e.run(made, test).as_dict(),
        "trts": _read(e, real, made, c.name),
        "gains": gains,
    }


def _normals(e: Experiment, images: Images) -> dict[str, int]:
    """How many of the images are normal, where only those teach."""
    if e.user.learns_from == "labels" or images.labels is None or e.normal is None:
        return {}
    return {"n_normal": int((images.labels == e.normal).sum())}


def _read(e: Experiment, real: Trained, made: Images, name: str) -> dict[str, Any]:
    """TRTS. A generator of normal images alone can teach a detector without being readable by one."""
    if e.scored_against is not None:
        try:
            check_kinds(made, e.scored_against, f"images of {name}")
        except VerisimError as error:
            return {"value": None, "reason": str(error)}
    return e.test(real, made).as_dict()


def _warnings(results: dict[str, Any], e: Experiment) -> list[str]:
    """What must be known before the numbers are believed."""
    out = []
    control, real, who = results["control"], results["trtr"]["auc"], e.word
    auc = control["auc"]
    if control["must_be"] is not None and not auc["low"] <= CHANCE <= auc["high"]:
        out.append(
            f"Control failed: with shuffled labels the {who} has an AUC of {auc['value']:.2f} "
            f"({auc['low']:.2f} to {auc['high']:.2f}) instead of 0.5. Do not believe the other numbers."
        )
    if e.scored_against is not None and real["high"] < CHANCE:
        out.append(
            f"The {who} trained on real images takes normal images for the abnormal ones: AUC {real['value']:.2f} "
            f"({real['low']:.2f} to {real['high']:.2f}), below 0.5. Reported as it is, not turned round."
        )
    elif real["low"] <= CHANCE:
        out.append(
            f"Real images alone do not teach this label (AUC {real['value']:.2f}, {real['low']:.2f} to "
            f"{real['high']:.2f}): there is nothing that synthetic images could be measured by."
        )
    more = control.get("real_minus_this")
    if more is not None and more["low"] <= 0:
        out.append(
            f"Trained on real images, the {who} is not shown to be better than its control, {control['kind']} (AUC "
            f"{real['value']:.2f} and {auc['value']:.2f}, difference {more['value']:+.2f}, {more['low']:+.2f} to "
            f"{more['high']:+.2f}): nothing shows that it learned from them what is normal, so synthetic images cannot be measured by it."
        )
    return out + [f"{n}: {r['reason']}" for n, r in results["rows"].items() if "reason" in r]
