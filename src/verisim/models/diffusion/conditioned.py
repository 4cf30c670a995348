"""What a diffusion model is conditioned on: a class, a text, or nothing; and what stands for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.diffusion.guidance import Null
from verisim.errors import VerisimError
from verisim.models.diffusion.represented import RepresentedModel
from verisim.models.diffusion.text import NO_TEXT, Reader, texts_or_error


class ConditionedModel(RepresentedModel):
    """Base of denoising models. A subclass sets `reader` and `label_dropout`."""

    reader: Reader | None  # None: classes or nothing
    label_dropout: float  # share of conditions left out in training

    def extra_channels(self, spec: ImageSpec) -> int:
        """Channels that the network gets beside those it denoises."""
        return 0

    @property
    def null_condition(self) -> Null:
        """The condition that means none: the class after the last one, a text without words."""
        return self.num_classes if self.reader is None else NO_TEXT

    def learn_texts(self, texts: Sequence[str] | None) -> None:
        """Take the vocabulary of the training texts; VerisimError if a text model gets none, or another any."""
        if self.reader is None:
            return super().learn_texts(texts)
        self.reader.learn(texts_or_error(texts))

    def read_texts(self, texts: Sequence[str]) -> Tensor:
        """The condition (N, M) int64 of texts; an empty text means none. Unknown words are warned of."""
        if self.reader is None:
            return super().read_texts(texts)
        return self.reader.read(texts)

    def condition_of(self, label: Tensor | None, texts: Sequence[str] | None) -> Tensor | None:
        """What training_loss gets beside the images: the words of their texts, or their classes."""
        if self.reader is None:
            return label
        return self.reader.read(texts_or_error(texts), strict=False).to(self.device)

    def check_condition(self, n: int, condition: Tensor | None) -> Tensor | None:
        """Condition as (n,) classes or (n, M) words on the model's device; VerisimError if it cannot be used."""
        if self.reader is None or condition is None:
            return super().check_condition(n, condition)
        if condition.ndim != 2 or condition.is_floating_point() or len(condition) not in (1, n):
            raise VerisimError(
                f"This model takes texts, not a condition of shape {tuple(condition.shape)}: give "
                f"model.read_texts([...]) of 1 or {n} texts ('verisim sample --text')."
            )
        return condition.to(self.device).expand(n, -1)

    def settings_to_rebuild(self) -> dict[str, Any]:
        """Also the vocabulary: what the model reads is known from its own file."""
        state = {} if self.reader is None else {"text_state": self.reader.state()}
        return {**super().settings_to_rebuild(), **state}

    def _drop_labels(self, label: Tensor | None) -> Tensor | None:
        """Classes or texts with a share replaced by none; None for an unconditional model."""
        if label is None or (self.num_classes == 0 and self.reader is None):
            return None
        drop = torch.rand(len(label)).to(label.device) < self.label_dropout
        if self.reader is not None:
            return label.masked_fill(drop[:, None], NO_TEXT)
        return label.masked_fill(drop, self.num_classes)
