"""Drawing many images: reproducible, shardable, labelled as asked, refused with a sentence."""

import pytest
import torch

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard
from verisim.models import build_model
from verisim.tasks.generation import choose_labels, class_index, generate

SPEC = ImageSpec((16, 16))


def made(classes=0, **training):
    model = build_model("conv_vae", {"width": 8, "max_width": 16, "latent": 4}, SPEC, classes)
    names = tuple("abcdef"[:classes])
    return model.eval(), ModelCard("conv_vae", {}, SPEC, classes, names, training=training)


def test_shards_are_what_one_process_draws():
    """Two ranks together give exactly the chunks of one process."""
    model, card = made()
    whole = generate(model, card, 150, seed=3, progress=False).images.pixels
    parts = [
        generate(model, card, 150, seed=3, rank=r, world_size=2, progress=False).images.pixels
        for r in range(2)
    ]
    assert torch.equal(torch.cat([parts[0][:64], parts[1], parts[0][64:]]), whole)


def test_seed_decides():
    """The same seed repeats, another one does not."""
    model, card = made()
    a, b, c = (generate(model, card, 8, seed=s, progress=False).images.pixels for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_labels_follow_training_frequency():
    """Without a class asked for, classes come as often as in the training data."""
    _, card = made(2, class_counts=[300, 100])
    share = choose_labels(card, 4000, 0, None).float().mean()
    assert abs(float(share) - 0.25) < 0.03


@pytest.mark.parametrize(
    ("classes", "label", "text"), [(0, 1, "without classes"), (2, 2, r"knows 0\.\.\.1"), (2, -1, "Class -1")]
)
def test_impossible_classes_are_refused(classes, label, text):
    """A class the model has not is named, with what it has."""
    _, card = made(classes)
    with pytest.raises(VerisimError, match=text):
        choose_labels(card, 4, 0, label)


def test_class_by_name():
    """Names and numbers both work; others list the names."""
    _, card = made(3)
    assert class_index(card, "b") == 1 and class_index(card, "2") == 2
    with pytest.raises(VerisimError, match="a, b, c"):
        class_index(card, "z")


def test_nan_samples_are_reported(monkeypatch):
    """A model that produces NaN is not written to files in silence."""
    model, card = made()
    monkeypatch.setattr(model, "sample", lambda n, c, g: torch.full((n, 1, 16, 16), torch.nan))
    with pytest.raises(VerisimError, match="NaN"):
        generate(model, card, 4, progress=False)


def test_unknown_sampling_option_is_named():
    """An option that the family has not is refused with those it has."""
    model, _ = made()
    with pytest.raises(VerisimError, match=r"no sampling option 'temprature'.*Did you mean 'temperature'"):
        model.configure_sampling(temprature=1.0)
