"""Scores by structure, AUROC by kind, readers, head parts and the threshold baseline: closed forms and the phantom's truth."""

import numpy as np
import pytest
import torch

from verisim.data.align import carried
from verisim.errors import VerisimError
from verisim.phantoms import head_ct, moved_heads
from verisim.roles import AnomalyDetector
from verisim.tasks.detection import by_kind, grouped_auroc, pixel_scores, reader_table, structure_scores
from verisim.tasks.head_parts import bone_level, head_parts, left_is_right
from verisim.tasks.intensity_threshold import IntensityThreshold, opened


@pytest.fixture(scope="module")
def heads():
    return head_ct.make(32, seed=3, size=64)


def test_structure_scores_are_percentiles_within_the_mask():
    """100 is the maximum, 50 the median; what lies outside of the mask does not count; an empty mask scores 0."""
    maps = torch.arange(100.0).view(1, 1, 10, 10)
    low = maps < 51
    parts = {"low": low, "none": torch.zeros_like(low)}
    assert {k: float(v) for k, v in structure_scores(maps, parts, 100).items()} == {"low": 50.0, "none": 0.0}
    assert float(structure_scores(maps, parts, 50)["low"]) == 25.0
    with pytest.raises(VerisimError, match="percentile=101"):
        structure_scores(maps, parts, 101)


def test_auroc_and_its_groups():
    """The value is the share of pairs in order; decisions that come in twos give a wider interval than if they were free."""
    scores = torch.tensor([3.0, 1.0, 2.0, 0.0])
    assert grouped_auroc(scores, torch.tensor([1, 1, 0, 0])).value == 0.75
    g = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 2 == 0
    some = torch.randn(60, generator=g) + truth
    twice, names = some.repeat_interleave(2), [str(i // 2) for i in range(120)]
    free = grouped_auroc(twice, truth.repeat_interleave(2))
    paired = grouped_auroc(twice, truth.repeat_interleave(2), names)
    single = grouped_auroc(some, truth)
    assert free.value == pytest.approx(single.value) == pytest.approx(paired.value)
    assert paired.se > 1.25 * free.se and paired.se == pytest.approx(single.se, rel=0.2)
    with pytest.raises(VerisimError, match="both kinds"):
        grouped_auroc(scores, torch.ones(4))


def test_kinds_are_told_from_the_normal():
    """A kind that always scores higher has 1, one that is like the normal about 1/2, one that is absent no entry."""
    labels = torch.tensor([0] * 40 + [1] * 40 + [2] * 40)
    scores = torch.rand(120, generator=torch.Generator().manual_seed(1)) + (labels == 1) * 2.0
    found = by_kind(scores, labels, ("normal", "bleed", "nothing", "absent"))
    assert set(found) == {"bleed", "nothing"} and found["bleed"].value == 1.0
    assert found["nothing"].low < 0.5 < found["nothing"].high


def test_readers_in_closed_form():
    """Three readers of four scans: kappa and (sensitivity + specificity) / 2 against the majority, by hand."""
    reads = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
    found = reader_table(reads)
    # majority yes, yes, no, no; the second reader has specificity 1/2, the third sensitivity 1/2
    assert found["auroc"] == [1.0, 0.75, 0.75] and found["mean_auroc"] == pytest.approx(5 / 6)
    assert found["kappa"] == pytest.approx(1 - (4 / 12) / (0.5))  # P = 2/3, chance 1/2
    with pytest.raises(VerisimError, match="odd number of readers"):
        reader_table(reads[:, :2])
    with pytest.raises(VerisimError, match="the same for all scans"):
        reader_table(torch.ones(4, 3))


@pytest.mark.parametrize(("size", "window"), [((64, 64), (-100.0, 200.0)), ((40, 40, 40), (-100.0, 950.0))])
def test_parts_are_those_of_the_phantom(size, window):
    """Halves and skull overlap with the phantom's own masks (Dice), and findings lie inside of them; sides are not mixed."""
    made = head_ct.make(16, seed=4, size=size, window=window)
    parts = head_parts(made.images.pixels, bone_level(window))
    for name, least in (("left", 0.85), ("right", 0.85), ("skull", 0.8)):
        truth = head_ct.mask(made.segmentation, name)
        both = (parts[name] & truth).flatten(1).sum(1)
        dice = 2 * both / (parts[name].flatten(1).sum(1) + truth.flatten(1).sum(1))
        assert float(dice.min()) > least, name
    lesion = head_ct.mask(made.segmentation, "lesion")
    covered = lesion & (parts["left"] | parts["right"] | parts["skull"])
    assert float(covered.sum() / lesion.sum()) > 0.95
    right = head_ct.mask(made.segmentation, "right")
    assert float((parts["left"] & right).sum() / right.sum()) < 0.1
    assert not head_parts(torch.full((1, 1, 16, 16), -1.0))["skull"].any()
    with pytest.raises(VerisimError, match="are meant"):
        head_parts(torch.zeros(1, 2, 16, 16))


def test_thin_bone_survives_turning_back():
    """A tilted head brought upright pixel by pixel has its halves; interpolated, the skull of some has holes and they are lost."""
    heads = moved_heads.make(6, 50, (64, 64))
    found = {True: [], False: []}
    for k in range(6):
        tilt = moved_heads.rigid((64, 64), (20.0 * (-1) ** k,), (0.0, 0.0))
        back = np.linalg.inv(tilt)
        x = moved_heads.shown(heads.scan(k, tilt), head_ct.WINDOW)
        truth = carried(heads.part(k, "left", tilt).float(), back, (64, 64), background=0.0)[0] > 0.5
        for nearest in found:
            y = carried(x, back, (64, 64), nearest=nearest)[0]
            left = head_parts(y[None])["left"][0]
            found[nearest].append(2 * float((left & truth).sum()) / float(left.sum() + truth.sum()))
    assert min(found[True]) > 0.85 and sum(v < 0.5 for v in found[False]) >= 2


def test_bone_and_sides():
    """300 HU in a window that reaches it, just below white otherwise; left follows the affine, unclear axes are told."""
    assert bone_level((-100, 950)) == pytest.approx(2 * 400 / 1050 - 1) and bone_level((-100, 200)) == 0.95
    right = np.array(
        [[0, 0, 1.0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    )  # columns run to the patient's right
    left = right.copy()
    left[0, 2] = -1
    assert left_is_right(None) and left_is_right(left) and not left_is_right(right)
    with pytest.raises(VerisimError, match="Reorient"):
        left_is_right(np.eye(4))


def test_small_pieces_are_dropped():
    """At every threshold only pieces of `least` pixels remain: a lone peak goes, a peak on a plateau sinks to it."""
    z = np.zeros((9, 9))
    z[0, 0] = 8.0
    z[4:7, 4:7] = 4.0
    z[5, 5] = 8.0
    kept = opened(z, 5)
    assert kept[0, 0] == 0 and 3.5 < kept[5, 5] <= 4 and kept[5, 5] == kept[4, 4]
    assert opened(z, 1)[0, 0] == pytest.approx(8.0)


def test_threshold_finds_bright_blood_and_not_what_is_as_bright_as_brain(heads):
    """Large haemorrhages are found on the side where they are; normal heads are the control."""
    detector = IntensityThreshold()
    assert isinstance(detector, AnomalyDetector)
    maps = detector.anomaly_map(heads.images.pixels)
    parts = head_parts(heads.images.pixels)
    found = structure_scores(maps, parts)
    labels, side = heads.images.labels, heads.factors["side"]
    blood = torch.maximum(found["left"], found["right"])
    kinds = by_kind(blood, labels, head_ct.CLASS_NAMES)
    assert kinds["epidural"].value > 0.9 and kinds["intraparenchymal"].value > 0.9
    bleeds = (labels >= 1) & (labels <= 3)
    assert float(((found["left"] > found["right"]) == (side > 0))[bleeds].double().mean()) > 0.9
    mask = detector.segment(heads.images.pixels, 3.0)
    assert torch.equal(mask, maps >= 3.0)


def test_pixel_scores_are_those_of_the_definition():
    """A perfect map, its opposite, a constant one; and with ties what scikit-learn has."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    masks = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    masks[:, 0, 1, 1:3] = True
    maps = torch.stack([masks[0].double(), -masks[0].double(), torch.zeros(1, 4, 4).double()])
    found = pixel_scores(maps, masks)
    assert found["auroc"].tolist() == [1.0, 0.0, 0.5]
    assert found["ap"].tolist() == pytest.approx([1.0, 2 / 16, 2 / 16])
    rng = torch.Generator().manual_seed(0)
    coarse = (torch.rand(4, 1, 6, 6, generator=rng) * 5).round()
    some = torch.rand(4, 1, 6, 6, generator=rng) > 0.7
    found = pixel_scores(coarse, some)
    for i in range(4):
        truth, value = some[i].flatten().numpy(), coarse[i].flatten().numpy()
        assert float(found["auroc"][i]) == pytest.approx(roc_auc_score(truth, value))
        assert float(found["ap"][i]) == pytest.approx(average_precision_score(truth, value))
    with pytest.raises(VerisimError, match="every mask needs pixels within the finding and outside of it"):
        pixel_scores(maps, torch.zeros_like(masks))
