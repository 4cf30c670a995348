"""Reports of phantoms: read back they state what was drawn, and the ruler sees it in the pixels."""

import pytest
import torch

from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS, chest
from verisim.phantoms.chest_findings import FIT_SEED, measure_states
from verisim.phantoms.chest_report import (
    ALWAYS,
    STATES,
    effusion_state,
    read_report,
    report,
    sentences,
    states,
)


@pytest.fixture(scope="module")
def phantom():
    return chest.make(400, 5, 64, rate=5.0)


def test_reports_read_back_as_what_was_drawn(phantom):
    """The parser inverts every report exactly: stated is true, and what is left out was absent."""
    meant = states(phantom.factors)
    for i, text in enumerate(report(phantom.factors)):
        read = read_report(text)
        for factor, names in STATES.items():
            want = names[meant[factor][i]]
            if factor in ALWAYS or want != "none" or factor in read:
                assert read[factor] == want, text


def test_every_state_and_every_wording_reads_back():
    """All wordings of all states, over many keys; a golden one."""
    for factor, names in STATES.items():
        for state in names:
            for key in range(40):
                read = read_report(sentences({"heart": "normal", factor: state}, str(key)))
                assert read.get(factor, "none") == state
    assert read_report("There is a large pleural effusion on the left. No cardiomegaly.") == {
        "effusion": "large left", "heart": "normal",
    }  # fmt: skip


def test_wordings_vary_but_are_the_images_own(phantom):
    """Paraphrases occur; the text of an image does not depend on n or on the company."""
    texts = report(phantom.factors)
    few = report({k: v[7:9] for k, v in phantom.factors.items()})
    assert few == texts[7:9] and len(set(texts)) > 150
    hearts = {s for t in texts for s in t.split(". ") if "heart" in s.lower() or "card" in s.lower()}
    assert len(hearts) >= 10


def test_what_is_not_stated_is_left_out():
    """A side or size that is missing makes no statement; other sentences none."""
    assert read_report("Pleural effusion. Nodule. Unremarkable spine.") == {}


def test_thresholds():
    """Exactly at the borders: 0.50 is normal, 0.55 borderline; 0.30 of fluid is large; the larger side counts."""
    one = torch.ones(1)
    f = {k: v[:1] for k, v in chest.draw(0, 0, True).items()}
    for ratio, want in ((0.50, 0), (0.501, 1), (0.55, 1), (0.551, 2)):
        assert int(states({**f, "cardiothoracic_ratio": ratio * one})["heart"]) == want
    assert effusion_state(torch.tensor([0.0, 0.29, 0.30, 0.2]), torch.tensor([0.0, 0.0, 0.0, 0.31])).tolist() == [
        0, 1, 2, 4,
    ]  # fmt: skip


def test_impossible_statements():
    """The error lists what can be stated."""
    with pytest.raises(VerisimError, match=r"heart = 'huge'.*normal, borderline, enlarged"):
        sentences({"heart": "huge"})


def test_rate_changes_only_who_has_findings(phantom):
    """More findings, the same people: all other factors are those of rate 1; rate 1 is the default."""
    plain = chest.make(64, 5, 32)
    again = chest.make(64, 5, 32, rate=1.0)
    assert torch.equal(plain.images.pixels, again.images.pixels)
    assert torch.equal(phantom.factors["cardiothoracic_ratio"][:64], plain.factors["cardiothoracic_ratio"])
    assert 0.3 < float(phantom.factors["effusion"].mean()) < 0.5
    assert bool((phantom.factors["effusion"][:64] >= plain.factors["effusion"]).all())
    with pytest.raises(VerisimError, match=r"rate=11"):
        chest.make(4, 0, 32, rate=11)


def test_the_ruler_sees_heart_and_effusion(phantom):
    """On phantoms it was not fitted to: mean accuracy over states, chance 1/3 and 1/5; mirrored, sides swap."""
    assert FIT_SEED != 5
    meant, seen = states(phantom.factors), measure_states(phantom.images)

    def balanced(factor, got):
        k = len(STATES[factor])
        return sum(float((got[meant[factor] == c] == c).double().mean()) for c in range(k)) / k

    assert balanced("heart", seen["heart"]) > 0.75
    assert balanced("effusion", seen["effusion"]) > 0.78
    shuffled = seen["effusion"].roll(1)
    assert balanced("effusion", shuffled) < 0.3  # negative control
    assert PHANTOMS["chest_findings"].report is report
