"""Training on normal images alone, for detectors of what is not normal."""

from __future__ import annotations

from dataclasses import replace

from verisim.data.folder import Dataset
from verisim.errors import DataError


def learn_from(dataset: Dataset, normal: str) -> Dataset:
    """The data set with a training split of class `normal` alone, without labels; "" = the data set as it is.

    Test and validation images keep all their classes. DataError for a class that there is none of, or fewer than
    two training images of.
    """
    if not normal:
        return dataset
    if normal not in dataset.class_names:
        known = ", ".join(dataset.class_names) or "none; name a column with --data.label"
        raise DataError(f"data.normal is '{normal}', which is no class of the data. They have: {known}.")
    train = dataset["train"]
    assert train.labels is not None
    kept = train.labels == dataset.class_names.index(normal)
    n = int(kept.sum())
    if n < 2:
        raise DataError(
            f"{n} training image(s) of class '{normal}'; at least 2 are needed. Add normal images."
        )
    splits = {**dataset.splits, "train": replace(train.subset(kept), labels=None)}
    affines = dict(dataset.affines)
    if "train" in affines:
        affines["train"] = affines["train"][kept.numpy()]
    note = f"trained on {n} of {len(train)} images: those of class '{normal}'"
    return replace(
        dataset,
        splits=splits,
        affines=affines,
        notes=(*dataset.notes, note),
        fingerprint=f"{dataset.fingerprint} normal={normal}",
    )
