"""Scores of held-out images: by hand, resumed, and the study of steps and members."""

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.models.segmentation.base import Prediction, SegmentationModel
from verisim.tasks.segmentation import evaluate, score_case, summary, sweep


class Known(SegmentationModel):
    """Answers with the first channel as probability and a quarter of the second as variance."""

    family = "known"
    calls = 0

    def predict(self, x, seed=0):
        self.calls += 1
        return Prediction((x[:, :1] + 1) / 2, (x[:, 1:2] + 1) / 8, 3)


@pytest.fixture
def images():
    """Two cases of 4 x 4 pixels, 2 mm: one right but for one pixel, one all wrong and silent about it."""
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    mask[:, 0, 1:3, 1:3] = 2
    x = torch.full((2, 2, 4, 4), -1.0)
    x[0, 0, 1:3, 1:3] = 1
    x[0, 0, 0, 0] = 1  # wrong,
    x[0, 1, 0, 0] = 1  # and uncertain
    return Images(x, ImageSpec((4, 4), 2, spacing=(2.0, 2.0)), names=("a", "b"), segmentation=mask)


def test_scores_by_hand(images):
    """Dice 8/9; the far corner is sqrt(2) pixels = 2.83 mm away; variance finds the one error; an empty answer."""
    model = Known(images.spec)
    a, b = evaluate(model, images)
    assert a.dice == pytest.approx(8 / 9) and 1 < a.hd95 <= 2.83 and a.auroc == 1.0
    assert (a.predicted, a.true, a.name) == (5, 4, "a") and a.count[0] == 15 and a.errors[-1] == 1
    assert (b.dice, b.auroc) == (0.0, 0.5) and b.hd95 == pytest.approx(8 * 2**0.5)
    table = summary([a, b])
    assert table["dice"]["value"] == pytest.approx(4 / 9) and table["calibration"]["pixels"][0] == 31
    assert table["calibration"]["error_rate"] == [pytest.approx(4 / 31), None, None, None, None, 1.0]
    assert table["calibration"]["auroc"] == 0.75 and table["cases"] == 2


def test_a_killed_evaluation_goes_on(images, tmp_path):
    """Cases that were done are not done again; other weights, options or masks are another evaluation."""
    model = Known(images.spec)
    first = evaluate(model, images.subset(torch.tensor([0])), memory=tmp_path, identity="w1")
    both = evaluate(model, images, memory=tmp_path, identity="w1")
    assert model.calls == 2 and both[0] == first[0]
    evaluate(model, images, memory=tmp_path, identity="w2")
    assert model.calls == 4
    with pytest.raises(VerisimError, match="give identity"):
        evaluate(model, images, memory=tmp_path)


def test_masks_are_needed(images):
    model = Known(images.spec)
    with pytest.raises(VerisimError, match=r"no masks.*--data\.mask"):
        evaluate(model, Images(images.pixels, images.spec))
    empty = Images(images.pixels, images.spec, segmentation=torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(VerisimError, match="None of the 2 masks marks anything"):
        evaluate(model, empty)


def test_sweep_is_what_predict_says():
    """A cell of the study is the score of the same steps, members and seed; options are restored."""
    torch.manual_seed(0)
    settings = {"channels": (4, 8), "blocks": 1, "patch": 8}
    model = build_model("diffusion_segmentation", settings, ImageSpec((8, 8))).eval()
    for p in model.net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    mask[:, :, 2:6, 2:6] = 1
    images = Images(torch.rand(3, 1, 8, 8) * 2 - 1, ImageSpec((8, 8)), segmentation=mask)
    before = model.options
    rows = sweep(model, images, (1, 3), (1, 4), seed=5)
    assert model.options == before and [(r["steps"], r["members"]) for r in rows] == [
        (1, 1),
        (1, 4),
        (3, 1),
        (3, 4),
    ]
    model.configure_sampling(steps=3, ensemble=4)
    scores = evaluate(model, images, seed=5)
    assert rows[-1]["dice"] == pytest.approx(sum(s.dice for s in scores) / 3, abs=0.02)
    assert (
        rows[-1]["evaluations"] == 12
        and score_case(model.predict(images.pixels[:1]), mask[:1], None, "x").true == 16
    )
