"""Text-image consistency: closed forms, phantoms near their ceiling, shuffled texts at their floor."""

from itertools import permutations

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.metrics.text_consistency import agreement, text_consistency
from verisim.metrics.text_judge import TextJudge, TextJudgeSettings, fit_text_judge, pair_loss, r_precision
from verisim.phantoms import chest
from verisim.phantoms.chest_report import STATES, balanced_reports, read_report, report
from verisim.text.words import WordReader


def test_chance_is_the_mean_over_all_permutations():
    """The closed form equals the average accuracy over every way to deal out the texts; hand-made 5 images."""
    asked, measured = torch.tensor([0, 0, 1, 2, 1]), torch.tensor([0, 1, 1, 1, 2])
    got = agreement(asked, measured, 4)
    deals = [asked[list(p)] for p in permutations(range(5))]
    assert got.chance == pytest.approx(
        sum(float((d == measured).double().mean()) for d in deals) / len(deals)
    )
    assert got.accuracy.value == pytest.approx(2 / 5) and got.asked == 5
    assert got.balanced == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    deals = [agreement(asked, measured[list(p)], 4).balanced for p in list(permutations(range(5)))[::7]]
    assert got.balanced_chance == pytest.approx(1 / 3) == pytest.approx(sum(deals) / len(deals), abs=0.1)


def test_phantoms_agree_with_their_reports_and_shuffled_ones_do_not():
    """Ceiling far above the floor; with each other's texts (negative control) the accuracy falls to the floor."""
    p = chest.make(320, 11, 64, rate=5.0)
    texts = report(p.factors)
    own, other = text_consistency(p.images, texts), text_consistency(p.images, texts[1:] + texts[:1])
    assert set(own) == {"heart", "effusion"}
    for factor, score in own.items():
        assert score.accuracy.low > score.chance + 0.25 and score.balanced > 0.75, factor
        wrong = other[factor]
        assert wrong.accuracy.low < wrong.chance < wrong.accuracy.high, factor
        assert abs(wrong.balanced - wrong.balanced_chance) < 0.12, factor


def test_balanced_reports_ask_for_all_equally():
    """15 pairs of heart and effusion, each as often; the words vary."""
    texts = balanced_reports(60)
    pairs = [tuple(read_report(t).items()) for t in texts]
    counts = {p: pairs.count(p) for p in pairs}
    assert all(sum(dict(p)["heart"] == h for p in pairs) == 20 for h in STATES["heart"])
    assert sum(counts.values()) == 60 and len(set(texts)) > 40 and balanced_reports(60) == texts


def test_refused():
    """No texts, or texts that state nothing."""
    images = Images(torch.zeros(2, 1, 32, 32), ImageSpec((32, 32)))
    with pytest.raises(VerisimError, match=r"0 texts for 2 images"):
        text_consistency(images)
    with pytest.raises(VerisimError, match=r"no text states a factor.*heart, effusion"):
        text_consistency(images, ["hello", "world"])


WORDS = ("left", "right", "top", "bottom", "middle", "nothing")


def blobs(n, seed):
    """Images with a square at one of five places or none, and a text that says where."""
    rng = torch.Generator().manual_seed(seed)
    which = torch.randint(0, 6, (n,), generator=rng)
    x = 0.2 * torch.randn(n, 1, 16, 16, generator=rng)
    for i, k in enumerate(which.tolist()):
        r, c = ((6, 1), (6, 11), (1, 6), (11, 6), (6, 6), (0, 0))[k]
        if k < 5:
            x[i, 0, r : r + 4, c : c + 4] += 1
    return Images(x.clamp(-1, 1), ImageSpec((16, 16)), texts=tuple(f"square {WORDS[k]}" for k in which))


def test_a_trained_judge_finds_texts_and_shuffling_defeats_it():
    """R-precision on held-out pairs near 1, with other texts at 1 / R; the same seed, the same judge."""
    settings = TextJudgeSettings(steps=60, width=8, dim=16)
    judge = fit_text_judge(blobs(200, 0), settings)
    test = blobs(90, 1)
    good = r_precision(judge, test, candidates=5)
    assert good.value > 0.9
    fixed = Images(test.pixels, test.spec, texts=tuple(f"square {WORDS[i % 6]}" for i in range(90)))
    bad = r_precision(judge, fixed, candidates=5)
    assert bad.low < 1 / 5 < bad.high
    again = fit_text_judge(blobs(200, 0), settings)
    assert torch.equal(
        again.similarity(test.pixels[:3], ["square left"]), judge.similarity(test.pixels[:3], ["square left"])
    )


def test_ties_count_as_chance():
    """A judge that gives every text the same similarity scores exactly 1 / R."""
    judge = fit_text_judge(blobs(40, 0), TextJudgeSettings(steps=1, width=4, dim=8))
    with torch.no_grad():
        judge.project.weight.zero_()
        judge.project.bias.fill_(1.0)
    assert r_precision(judge, blobs(30, 2), candidates=4).value == pytest.approx(0.25)


def test_equal_texts_are_equally_right():
    """Two images with one text: the loss is least when both texts are chosen half the time."""
    numbers = torch.tensor([[2, 3], [2, 3]])
    a = torch.eye(2)
    split = pair_loss(a, torch.full((2, 2), 0.5**0.5), numbers, 0.1)
    assert float(split) == pytest.approx(0.6931, abs=1e-4) and float(pair_loss(a, a, numbers, 0.1)) > 4


def test_judge_refusals():
    """Too few pairs, too few different texts, empty ones."""
    with pytest.raises(VerisimError, match=r"at least 16 images with a text; there are 9"):
        fit_text_judge(blobs(9, 0))
    reader = WordReader(10, 4)
    reader.learn(["square left"])
    judge = TextJudge(blobs(4, 0), reader, TextJudgeSettings(width=4)).eval()
    with pytest.raises(VerisimError, match=r"1 different texts; at least candidates = 10"):
        r_precision(judge, blobs(4, 0), ["square left"] * 4)
    with pytest.raises(VerisimError, match=r"none empty"):
        r_precision(judge, blobs(4, 0), ["a", "b", "c", " "])
