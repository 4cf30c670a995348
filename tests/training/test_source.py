"""Settings to data sets: phantoms with contrasts and masks, folders with both, and old configurations."""

import numpy as np
import pytest
import torch
from PIL import Image

from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS
from verisim.training.source import DataSettings, open_dataset

OLD = {"folder": "", "phantom": "chest", "count": 20, "size": 32, "channels": 1, "label": "", "split": "split",
       "fit": "pad", "enlarge": False, "low": 0.0, "high": 0.0, "on_error": "stop", "seed": 0}  # fmt: skip


def test_old_configurations_give_the_same_data():
    """A config.yaml from before masks and contrasts still loads, with the fingerprint that resuming compares."""
    data = open_dataset(DataSettings(**OLD))
    assert data.fingerprint == "phantom chest: 20 of 32 pixels, seed 0"
    assert data["train"].segmentation is None and data.structures == () and data["train"].spec.channels == 1


def test_brain_phantom_with_contrasts_and_lesions():
    """Channels and masks are the phantom's own; a lesion is every code that no healthy person has."""
    made = PHANTOMS["brain"].make(20, 3, 32, contrasts=("T1", "T1c", "T2", "FLAIR"))
    settings = DataSettings(
        phantom="brain", count=20, size=32, seed=3, contrasts="T1, T1c,T2,FLAIR", mask="lesion"
    )
    data = open_dataset(settings)
    pixels = torch.cat([data["test"].pixels, data["train"].pixels])
    masks = torch.cat([data["test"].segmentation, data["train"].segmentation])
    assert settings.channel_count == 4 and torch.equal(pixels, made.images.pixels)
    first = PHANTOMS["brain"].structures.index("ms_lesion")
    assert (
        torch.equal(masks, (made.segmentation >= first).to(torch.uint8))
        and 0 < masks.sum() < masks.numel() / 4
    )
    healthy = made.images.labels == 0
    assert not masks[healthy].any() and masks[~healthy].flatten(1).any(1).all()
    assert data.structures == ("background", "lesion") and data.contrasts == ("T1", "T1c", "T2", "FLAIR")
    assert (
        data.fingerprint != open_dataset(DataSettings(phantom="brain", count=20, size=32, seed=3)).fingerprint
    )


def test_every_structure_of_a_phantom():
    data = open_dataset(DataSettings(phantom="head_ct", count=10, size=32, mask="structures"))
    made = PHANTOMS["head_ct"].make(10, 0, 32)
    assert torch.equal(data["test"].segmentation, made.segmentation[:2])
    assert data.structures == PHANTOMS["head_ct"].structures
    one = open_dataset(DataSettings(phantom="head_ct", count=10, size=32, mask="lesion"))
    assert set(one["train"].segmentation.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"phantom": "chest", "mask": "lesion"}, "chest phantom has no segmentation: leave it empty"),
        ({"phantom": "growing_brain", "mask": "lesion"}, "growing_brain phantom has structures"),
        (
            {"phantom": "brain", "mask": "tumour"},
            "data.mask is 'tumour'; the brain phantom has structures and lesion",
        ),
        ({"phantom": "knee", "contrasts": "T1"}, "knee phantom has one only; several has: brain"),
        ({"phantom": "brain", "contrasts": "T1,T3"}, "T3"),
        ({"phantom": "brain", "contrasts": "T1,T1"}, "name each contrast once"),
        ({"phantom": "brain", "image": "t1,t2"}, "names manifest columns, and the phantom has none"),
        ({"phantom": "brain", "channels": 0}, "phantoms are grey"),
        ({"phantom": "brain", "channels": 3, "contrasts": "T1,T2"}, "one channel for each of data.contrasts"),
        ({"folder": "x", "contrasts": "T1,T2"}, "in a folder, name the manifest columns.*--data.image t1,t2"),
    ],
)
def test_what_a_source_does_not_have(settings, text):
    """Each gets a sentence that says what there is."""
    with pytest.raises(VerisimError, match=text):
        open_dataset(DataSettings(**{"count": 10, "size": 32, **settings}))


def test_folder_with_contrasts_and_masks(tmp_path):
    """The settings reach the reader: channels, masks and their names' absence."""
    rows = ["patient,split,a,b,seg"]
    for i in range(6):
        rng = np.random.default_rng(i)
        for name in ("a", "b"):
            Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / f"{name}{i}.png")
        Image.fromarray(rng.integers(0, 2, (16, 16), dtype=np.uint8)).save(tmp_path / f"s{i}.png")
        rows.append(f"p{i},{'test' if i < 2 else 'train'},a{i}.png,b{i}.png,s{i}.png")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    settings = DataSettings(folder=str(tmp_path), size=16, image="a,b", mask="seg")
    data = open_dataset(settings)
    assert settings.channel_count == 2 == data["train"].spec.channels and data.structures == ()
    assert data["train"].segmentation.shape == (4, 1, 16, 16) and data["test"].segmentation.max() == 1
