"""Histogram equalisation: ranks of the reference, one monotone map, the same whatever the scale of grey values."""

import pytest
import torch

from verisim.data.equalise import LEVELS, equalisation_table, equalise, identity_table
from verisim.data.normal import learn_from
from verisim.errors import DataError
from verisim.seeding import generator
from verisim.training.source import DataSettings, open_dataset


def grey(n=1, seed=0):
    x = 0.1 * torch.randn(n, 1, 24, 24, generator=generator(seed)) - 0.2
    return x.clamp(-1, 1)


def test_ranks_of_the_reference_are_uniform():
    """Equalised by its own table an image is uniform on [-1, 1], and order is kept."""
    x = grey(8)
    table = equalisation_table(x, torch.ones(8, 24, 24, dtype=torch.bool))
    y = equalise(x, table)
    q = torch.quantile(y.flatten(), torch.linspace(0.05, 0.95, 19))
    assert torch.allclose(q, torch.linspace(-0.9, 0.9, 19), atol=0.02)
    assert bool((table.diff() >= 0).all())
    order = x.flatten().argsort()
    assert bool((y.flatten()[order].diff() >= -1e-6).all())


def test_closed_forms():
    """Identity; two equal halves become -1/2 and 1/2; the mask decides what counts; no mask, no change."""
    x = grey()
    assert torch.allclose(equalise(x, identity_table(1)), x, atol=1e-6)
    two = torch.full((1, 1, 4, 4), -1.0)
    two[..., 2:] = 1.0
    everywhere = torch.ones(1, 4, 4, dtype=torch.bool)
    assert equalise(two, equalisation_table(two, everywhere)).unique().tolist() == [-0.5, 0.5]
    bright = two[:, 0] > 0
    assert equalise(two, equalisation_table(two, bright)).unique().tolist() == [-1.0, 0.0]
    assert torch.equal(equalisation_table(two, ~everywhere), identity_table(1))
    assert equalisation_table(two, everywhere).shape == (1, LEVELS)


def test_own_histogram_forgets_the_scale():
    """By its own table an image is the same after any monotone change of grey values; by a foreign one it is not."""
    x = grey()
    other = (x - 0.3) * 0.5
    everywhere = torch.ones(1, 24, 24, dtype=torch.bool)
    a, b = (equalise(v, equalisation_table(v, everywhere)) for v in (x, other))
    assert torch.allclose(a, b, atol=0.02)
    assert not torch.allclose(a, equalise(other, equalisation_table(x, everywhere)), atol=0.2)


def test_training_on_one_class():
    """Only its images are trained on, without labels; the test images stay as they are; unknown classes are told."""
    settings = {"phantom": "head_ct", "count": 60, "size": 32, "label": "label"}
    everything = open_dataset(DataSettings(**settings))
    normal = open_dataset(DataSettings(**settings, normal="normal"))
    kept = everything["train"].labels == 0
    assert torch.equal(normal["train"].pixels, everything["train"].pixels[kept]) and 0 < kept.sum() < 48
    assert normal["train"].labels is None and torch.equal(normal["test"].labels, everything["test"].labels)
    assert normal.fingerprint != everything.fingerprint and "class 'normal'" in normal.notes[-1]
    with pytest.raises(DataError, match=r"data\.normal is 'healthy'.*They have: normal, epidural"):
        learn_from(everything, "healthy")
    with pytest.raises(DataError, match="name a column"):
        open_dataset(DataSettings(phantom="head_ct", count=10, size=32, normal="normal"))
