"""A frozen text encoder from a local Hugging Face folder. Optional: pip install 'verisim[text]'.

Read from safetensors only, without network and without code of the folder's own. The weights stay in the folder;
a model that was trained with them remembers their SHA-256 and refuses others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verisim.errors import CheckpointError, VerisimError
from verisim.text.words import check_lengths


class PretrainedReader:
    """Texts -> numbers (N, M) int64: the tokeniser's own plus one, 0 = padding. Numbers -> tokens (N, M, width).

    A copy is the same object: moving averages of a network share one frozen encoder.
    """

    def __init__(
        self,
        folder: str,  # config.json, tokenizer files and *.safetensors
        length: int,  # M: tokens of a text at most, with those that mark its ends
        state: str = "",  # from state() of a trained model: the encoder must be the same
    ) -> None:
        self.folder, self.length = Path(folder), length
        self.digest = _digest(self.folder)
        if state and json.loads(state).get("sha256") != self.digest:
            raise CheckpointError(
                f"The text encoder in {folder} is not the one that this model was trained with (its SHA-256 "
                f"differs). Give back the old folder."
            )
        self.tokenizer, self.encoder = _load(self.folder)
        self.encoder.requires_grad_(False).eval()
        self.width = int(self.encoder.config.hidden_size)
        room = int(getattr(self.encoder.config, "max_position_embeddings", length))
        if length > room:
            raise VerisimError(
                f"text_length = {length}: the text encoder in {folder} takes up to {room} tokens."
            )

    def __deepcopy__(self, memo: dict) -> PretrainedReader:
        return self

    def learn(self, texts: Sequence[str]) -> None:
        """Nothing is learned; a text that is too long is reported before training."""
        self.read(texts, strict=False)

    def state(self) -> str:
        """What identifies the encoder, as JSON."""
        return json.dumps({"sha256": self.digest})

    def read(self, texts: Sequence[str], strict: bool = True) -> Tensor:
        """Numbers (N, M) of texts; an empty text is all padding. VerisimError for one that is too long."""
        rows = [self.tokenizer(t)["input_ids"] if t.strip() else [] for t in texts]
        check_lengths([len(r) for r in rows], self.length, "tokens")
        numbers = torch.zeros(len(rows), self.length, dtype=torch.long)
        for line, row in zip(numbers, rows):
            line[: len(row)] = torch.tensor(row, dtype=torch.long) + 1
        return numbers

    @torch.no_grad()
    def encode(self, numbers: Tensor) -> Tensor:
        """(N, M) -> (N, M, width); what stands at padding is to be masked."""
        self.encoder.to(numbers.device)
        mask = numbers > 0
        seen = mask.clone()
        seen[:, 0] = True  # a row of padding alone has nothing to attend to
        ids = (numbers - 1).clamp(min=0)
        out = self.encoder(input_ids=ids, attention_mask=seen.long()).last_hidden_state
        return out.float() * mask[..., None]


def _load(folder: Path) -> tuple[Any, Any]:
    """(tokeniser, encoder) of a folder."""
    try:
        import transformers
    except ImportError as e:
        raise VerisimError(
            f"A text encoder folder ({folder}) is read with the package transformers, which is not installed. "
            "Install it (pip install 'verisim[text]'), or choose --model.text words, which needs nothing."
        ) from e
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as e:
        reason = str(e).splitlines()[0][:200]
        raise CheckpointError(f"The text encoder in {folder} cannot be read: {reason}") from e
    if getattr(model.config, "is_encoder_decoder", False):
        return tokenizer, model.get_encoder()
    return tokenizer, getattr(model, "text_model", model)


def _digest(folder: Path) -> str:
    """SHA-256 over the folder's safetensors files; CheckpointError where there are none."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise CheckpointError(
            f"{folder} is no text encoder: a folder with config.json, the tokenizer's files and *.safetensors is "
            f"meant (other weight formats can run code and are not read). --model.text words needs no folder."
        )
    h = hashlib.sha256()
    for file in files:
        with open(file, "rb") as f:
            while chunk := f.read(1 << 20):
                h.update(chunk)
    return h.hexdigest()
