"""Judge several generators on the same real images: one dictionary of results, one report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console

from verisim.data.folder import Dataset
from verisim.data.spec import Images
from verisim.errors import VerisimError, pick
from verisim.metrics.judges import JudgeSettings
from verisim.metrics.memo import Measured, Memo
from verisim.metrics.protocols.fair import FairSettings, Progress, evaluate_fair, summarise
from verisim.metrics.utility import Scores, train_and_test, utility
from verisim.phantoms import PHANTOMS
from verisim.tasks.contestants import Contestant
from verisim.training.run_folder import environment


def held_out(dataset: Dataset) -> Images:
    """Test images together with validation images, which none of the models here uses."""
    parts = [dataset.splits[s] for s in ("test", "val") if s in dataset.splits]
    if not parts:
        raise VerisimError(
            "There are no held-out images: the data have no test split. Mark some patients as 'test' in "
            "manifest.csv, or train with --data.split new, which holds some patients out."
        )
    return (parts[0] if len(parts) == 1 else parts[0].joined(parts[1])).quantise()


def show_progress(where: str) -> Progress:
    """Prints a line on standard error for every row that is judged."""
    console = Console(stderr=True)

    def show(what: str, done: int, total: int) -> None:
        console.print(f"{where}: judging {done}/{total} {what}", markup=False, highlight=False)

    return show


def compare(
    contestants: Sequence[Contestant],
    dataset: Dataset,
    settings: FairSettings,
    *,
    anatomy: str = "",
    progress: Progress | None = None,
    memory: Path | None = None,
) -> dict[str, Any]:
    """All numbers of the fair protocol, with utility, likelihood, cost and anatomy, ready for JSON.

    memory: folder that keeps what was measured, so that a comparison that was killed goes on; anatomy: name of the phantom whose measurements apply to these images (e.g. chest); empty = none.
    """
    train, test = dataset["train"].quantise(), held_out(dataset)
    names = [c.name for c in contestants]
    if len(set(names)) < len(names):
        raise VerisimError(f"Two of the compared sets share a name: {', '.join(sorted(names))}. Rename one.")
    memo = Memo(memory)
    results = evaluate_fair({c.name: c.images for c in contestants}, train, test, settings, progress, memo)
    results["summary"] = summarise(results)
    results["environment"] = environment()
    results["facts"] = {c.name: c.facts for c in contestants}
    if anatomy:
        sets = {"real": test, **{c.name: c.images for c in contestants}}
        results["anatomy"] = {k: anatomy_statistics(v, anatomy) for k, v in sets.items()}
    if train.labels is not None and test.labels is not None:
        results["utility"] = _utility(contestants, train, test, settings, dataset, memo, progress)
    return results


def _utility(
    contestants: Sequence[Contestant],
    train: Images,
    test: Images,
    settings: FairSettings,
    dataset: Dataset,
    memo: Memo,
    progress: Progress | None,
) -> dict[str, Any]:
    """Train on synthetic, test on real, for one training seed per generator; or the reason why not."""
    judge = JudgeSettings(steps=settings.c2st_steps, width=settings.judge_width)
    common = (judge, settings.seed, settings.n_seeds, settings.bootstrap)

    @cache
    def trtr() -> Scores:
        return train_and_test(train, test, *common)

    def measure(images: Images) -> Measured:
        try:
            return utility(train, test, images, *common, dataset.class_names, trtr()), {}
        except VerisimError as e:
            return {"value": None, "reason": str(e)}, {}

    chosen = [c for c in contestants if "@" not in c.name or c.name.endswith("@0")]
    found = {}
    for i, c in enumerate(chosen):
        if progress is not None:
            progress(f"usefulness of {c.name}", i, len(chosen))
        parts = ["utility", common, dataset.class_names, train, test, c.images]
        found[c.name] = memo.fetch(parts, partial(measure, c.images))[0]
    return found


def anatomy_statistics(images: Images, anatomy: str) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and share above 0 of what the phantom's measurement reads from each image."""
    measured = pick(PHANTOMS, anatomy, "phantom").measure(images)
    return {
        k: {
            "mean": float(v.mean()),
            "std": float(v.std(correction=0)),
            "share_positive": float((v > 0).double().mean()),
        }
        for k, v in measured.items()
    }
