"""Words of reports: nothing that carries meaning is lost, and what cannot be read is said."""

import json
import warnings

import pytest
import torch

from verisim.errors import CheckpointError, VerisimError
from verisim.text.pretrained import PretrainedReader
from verisim.text.words import PADDING, UNKNOWN, Vocabulary, WordReader, split_words

REPORTS = (
    "No pleural effusion. Heart size is normal.",
    "Large right-sided effusion, 2.5 cm.",
    "The heart isn't large.",
)


def reader(**settings):
    made = WordReader(**{"most": 50, "length": 8, **settings})
    made.learn(REPORTS)
    return made


def test_words_numbers_and_negations_stay():
    """A hand-made golden case: case and punctuation go, "no", "isn't" and 2.5 stay."""
    assert split_words("No right-sided EFFUSION, 2.5 cm; isn\u2019t ÖDEM?") == [
        "no", "right", "sided", "effusion", "2.5", "cm", "isn't", "ödem",
    ]  # fmt: skip
    assert split_words("") == split_words(" .,;- ") == []


def test_vocabulary_is_deterministic():
    """By frequency, then by alphabet, whatever the order of the texts; cut at the size asked for."""
    v = Vocabulary.of(["b b a", "c a d"], 3)
    assert v.words == ("a", "b", "c") == Vocabulary.of(["c a d", "b b a"], 3).words
    assert v.numbers(["c", "zebra", "a"]) == [4, UNKNOWN, 2]


def test_reading_is_exact():
    """Row by row the words' numbers, then padding; an empty text is all padding."""
    r = reader()
    got = r.read(["heart normal", ""])
    place = r.vocabulary.place
    assert got.dtype == torch.int64 and got.shape == (2, 8)
    assert got[0].tolist() == [place["heart"], place["normal"]] + [PADDING] * 6
    assert not got[1].any()


def test_state_round_trip_is_json():
    """A reader rebuilt from its state reads the same; learning again changes nothing."""
    r = reader()
    assert json.loads(r.state())["words"] == list(r.vocabulary.words)
    again = WordReader(50, 8, r.state())
    again.learn(["other words entirely"])
    assert torch.equal(again.read(REPORTS[:1]), r.read(REPORTS[:1]))


@pytest.mark.parametrize("state", ["{", "[]", '{"words": 3}', '{"words": [1]}', '{"other": []}'])
def test_damaged_vocabularies_are_refused(state):
    """A damaged file is named as such, not met as a KeyError later."""
    with pytest.raises(CheckpointError, match=r"vocabulary is damaged"):
        WordReader(50, 8, state)


def test_text_that_is_too_long():
    """The error says how long, how long is possible, and the setting; in training it counts the texts."""
    with pytest.raises(VerisimError, match=r"The text has 9 words; this model takes up to 8.*text_length 9"):
        reader().read(["heart " * 9])
    with pytest.raises(VerisimError, match=r"1 of 3 texts are too long, up to 7 words.*up to 6"):
        reader(length=6)
    assert reader(length=7).length == 7  # the longest training text has seven words


def test_unknown_words():
    """Unknown words are counted and named; a text of them alone is an error with the nearest word."""
    r = reader()
    with pytest.warns(UserWarning, match=r"2 of 4 words are unknown.*'giant', 'pumpkin'"):
        assert r.read(["giant pumpkin heart normal"])[0, :2].tolist() == [UNKNOWN, UNKNOWN]
    with pytest.raises(VerisimError, match=r"'hart' has no word that this model knows. Did you mean 'heart'"):
        r.read(["hart"])
    with pytest.raises(VerisimError, match=r"no word that this model knows"):
        r.read(["?!"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r.read(["", "heart"])


def test_nothing_to_learn_from():
    """Training texts without words, a reader without a vocabulary, impossible sizes."""
    with pytest.raises(VerisimError, match=r"None of 2 training texts holds a word"):
        WordReader(5, 5).learn(["", "..."])
    with pytest.raises(VerisimError, match=r"no vocabulary yet"):
        WordReader(5, 5).read(["heart"])
    with pytest.raises(VerisimError, match=r"text_words = 0, text_length = 5"):
        WordReader(0, 5)
    with pytest.raises(CheckpointError, match=r"where its settings allow 2"):
        WordReader(2, 5, reader().state())


def test_encoder_folders(tmp_path, monkeypatch):
    """A folder without safetensors, another encoder than in training, a missing package: one sentence each."""
    with pytest.raises(CheckpointError, match=r"is no text encoder"):
        PretrainedReader(str(tmp_path), 8)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"\*\.safetensors is meant .*can run code"):
        PretrainedReader(str(tmp_path), 8)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=r"not the one that this model was trained with"):
        PretrainedReader(str(tmp_path), 8, '{"sha256": "0"}')
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(VerisimError, match=r"package transformers.*verisim\[text\].*--model.text words"):
        PretrainedReader(str(tmp_path), 8)
