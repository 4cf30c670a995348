"""From a report to words, and from words to numbers. Deterministic; stored as JSON.

    "No right-sided effusion, 2.5 cm."  ->  no right sided effusion 2.5 cm

Nothing is left out but punctuation: "no", "without" and numbers carry the meaning of a report.
"""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from verisim.errors import CheckpointError, VerisimError, nearest

PADDING, UNKNOWN = 0, 1  # numbers of no word, and of a word that is not in the vocabulary
FIRST = 2  # number of the first word
WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?")


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, in order; hyphens and punctuation divide them."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'"))


@dataclass(frozen=True)
class Vocabulary:
    """Words by number: word k has number k + FIRST."""

    words: tuple[str, ...]

    @staticmethod
    def of(texts: Iterable[str], most: int) -> Vocabulary:
        """The `most` most frequent words of texts, by frequency, then by alphabet."""
        counts = Counter(w for t in texts for w in split_words(t))
        return Vocabulary(tuple(sorted(counts, key=lambda w: (-counts[w], w))[:most]))

    def to_json(self) -> str:
        return json.dumps({"words": list(self.words)}, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Vocabulary:
        """What to_json gave; CheckpointError for anything else."""
        try:
            words = json.loads(text)["words"]
        except (ValueError, KeyError, TypeError) as e:
            raise CheckpointError(f"The model's vocabulary is damaged ({type(e).__name__}).") from e
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise CheckpointError("The model's vocabulary is damaged: it must be a list of words.")
        return Vocabulary(tuple(words))

    def numbers(self, words: Sequence[str]) -> list[int]:
        """The number of each word; UNKNOWN for one that is not here."""
        return [self.place.get(w, UNKNOWN) for w in words]

    @cached_property
    def place(self) -> dict[str, int]:
        """word -> its number."""
        return {w: k + FIRST for k, w in enumerate(self.words)}


class WordReader:
    """Texts -> numbers (N, M) int64 for a trained-from-scratch encoder; PADDING fills the rows up."""

    def __init__(
        self,
        most: int,  # words of the vocabulary at most
        length: int,  # M: words of a text at most
        state: str = "",  # the vocabulary of a trained model, from state(); "" = learn() it
    ) -> None:
        if most < 1 or length < 1:
            raise VerisimError(
                f"text_words = {most}, text_length = {length}: both must be 1 or more, e.g. 1000 and 64."
            )
        self.most, self.length = most, length
        self.vocabulary = Vocabulary.from_json(state) if state else None
        if self.vocabulary is not None and len(self.vocabulary.words) > most:
            raise CheckpointError(
                f"The model's vocabulary has {len(self.vocabulary.words)} words where its settings allow {most}."
            )

    def learn(self, texts: Sequence[str]) -> None:
        """Take the vocabulary of the training texts, unless there is one already."""
        if self.vocabulary is None:
            vocabulary = Vocabulary.of(texts, self.most)
            if not vocabulary.words:
                raise VerisimError(
                    f"None of {len(texts)} training texts holds a word. Choose the column that holds the reports "
                    "with --data.text."
                )
            self.vocabulary = vocabulary
        self.read(texts, strict=False)  # a text that is too long is better known before hours of training

    def state(self) -> str:
        """The vocabulary as JSON; "" before learn()."""
        return "" if self.vocabulary is None else self.vocabulary.to_json()

    def read(self, texts: Sequence[str], strict: bool = True) -> Tensor:
        """Numbers (N, M) of texts. An empty text is all padding: it means "no condition".

        strict: unknown words are counted in a warning, and a text of unknown words alone is a VerisimError. A text
        of more than M words is one always.
        """
        if self.vocabulary is None:
            raise VerisimError(
                "This text model has no vocabulary yet: it is made of the training reports. Call "
                "model.learn_texts(texts) before the first step ('verisim train' does)."
            )
        rows = [split_words(t) for t in texts]
        check_lengths([len(r) for r in rows], self.length, "words")
        if strict:
            _report_unknown(texts, rows, self.vocabulary)
        numbers = torch.zeros(len(rows), self.length, dtype=torch.long)
        for line, row in zip(numbers, rows):
            line[: len(row)] = torch.tensor(self.vocabulary.numbers(row), dtype=torch.long)
        return numbers


def _report_unknown(texts: Sequence[str], rows: list[list[str]], vocabulary: Vocabulary) -> None:
    """Warn of unknown words; VerisimError for a text that has none else."""
    known = vocabulary.place
    for text, row in zip(texts, rows):
        if text.strip() and not any(w in known for w in row):
            hint = nearest(row[0], known) if row else ""
            raise VerisimError(
                f"The text '{text[:80]}' has no word that this model knows.{hint} It was trained on reports of "
                f"{len(known)} words, among them: {', '.join(vocabulary.words[:12])}."
            )
    lost = Counter(w for row in rows for w in row if w not in known)
    if lost:
        shown = ", ".join(f"'{w}'" for w, _ in lost.most_common(5))
        warnings.warn(
            f"{sum(lost.values())} of {sum(map(len, rows))} words are unknown to this model and say nothing to "
            f"it: {shown}.",
            stacklevel=4,
        )


def check_lengths(lengths: Sequence[int], most: int, unit: str) -> None:
    """VerisimError if a text is longer than the encoder takes."""
    long = [n for n in lengths if n > most]
    if long:
        which = (
            "The text has"
            if len(lengths) == 1
            else f"{len(long)} of {len(lengths)} texts are too long, up to"
        )
        raise VerisimError(
            f"{which} {max(long)} {unit}; this model takes up to {most}. Shorten it, or train with "
            f"--model.text_length {max(long)}."
        )
