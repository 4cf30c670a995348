"""Real haemorrhage slices: blood lies inside of the skull that is found, and is brighter than the brain around it."""

import numpy as np
import pytest
import torch

from verisim.metrics.c2st import auc
from verisim.tasks.head_parts import head_parts
from verisim.tasks.intensity_threshold import IntensityThreshold


@pytest.mark.real
@pytest.mark.parametrize("name", ["brain_intracranial_hemorrhage", "multiclass_brain_hemorrhage"])
def test_blood_is_where_and_what_it_is_said_to_be(real_data, name):
    """Pixels of blood against others of the same inside, slice by slice; the mask of the mirrored side is the control."""
    with np.load(real_data / "seg_minis_2d" / f"{name}.npz") as stored:
        x = torch.from_numpy(stored["image"]).float()[:, None] / 127.5 - 1
        blood = torch.from_numpy(stored["label"]) > 0
    parts = head_parts(x, gap=4)
    inside = (parts["left"] | parts["right"])[:, 0]
    maps = IntensityThreshold().normalised(x)[:, 0]
    g = torch.Generator().manual_seed(0)

    def some(values, n):
        return values[torch.randint(len(values), (n,), generator=g)]

    covered, right, mirrored = [], [], []
    for m, b, i, s in zip(maps, blood, inside, parts["skull"][:, 0]):
        covered.append(float((b & (i | s)).sum() / b.sum()))
        for found, mask in ((right, b), (mirrored, b.flip(-1) & ~b)):
            if (i & mask).sum() > 20 and (i & ~mask).sum() > 20:
                found.append(auc(some(m[i & mask], 400), some(m[i & ~mask], 2000)))
    assert np.median(covered) > 0.95 and len(right) >= 20
    assert np.median(right) > 0.75 and np.median(mirrored) < np.median(right) - 0.15
