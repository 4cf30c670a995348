"""Text as the condition of a diffusion model: a reader of texts, and an encoder before the U-Net.

The condition is a tensor of word numbers (B, M) int64; 0 is padding, and a row of zeros means "no condition". So
dropping conditions in training and classifier-free guidance are what they are for classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.nets.dit import DiT
from verisim.nets.text_encoder import TextEncoder
from verisim.nets.unet import UNet
from verisim.text.pretrained import PretrainedReader
from verisim.text.words import FIRST, WordReader

Reader = WordReader | PretrainedReader
NO_TEXT = 0  # number of no word


class TextNet(nn.Module):
    """A U-Net that reads tokens, behind the encoder that makes them of word numbers."""

    def __init__(
        self,
        net: UNet,  # built for tokens of the encoder's width
        encoder: TextEncoder | None,  # trained with it; None = the frozen one of `reader`
        reader: Reader,
    ) -> None:
        super().__init__()
        self.net, self.encoder, self.reader = net, encoder, reader
        self.stride = net.stride

    def forward(self, x: Tensor, c_noise: Tensor, text: Tensor | None = None) -> Tensor:
        """x (B, C, *S), c_noise (B,), text (B, M) int64 or None -> (B, C', *S)."""
        if text is None:
            return self.net(x, c_noise)
        if self.encoder is not None:
            tokens = self.encoder(text)
        else:
            assert isinstance(self.reader, PretrainedReader)
            tokens = self.reader.encode(text)
        return self.net(x, c_noise, tokens=tokens, token_mask=text > 0)


def build_reader(text: str, words: int, length: int, state: str) -> Reader | None:
    """The reader by setting: "" = none, "words" = of the reports' own vocabulary, else an encoder folder."""
    if not text:
        return None
    if text == "words":
        return WordReader(words, length, state)
    return PretrainedReader(text, length, state)


def build_encoder(reader: Reader, width: int, depth: int) -> TextEncoder | None:
    """The encoder that is trained with the network; None where the reader brings a frozen one."""
    if isinstance(reader, PretrainedReader):
        return None
    return TextEncoder(reader.most + FIRST, reader.length, width, depth)


def check_text_settings(reader: Reader, num_classes: int, backbone: str, attention: Sequence[bool]) -> None:
    """VerisimError for settings with which a text would not be read."""
    if num_classes:
        raise VerisimError(
            "A model takes a class or a text, not both: leave out --data.label, or write the class into the text."
        )
    if backbone != "unet":
        raise VerisimError(f"backbone {backbone} reads no text. Choose backbone unet.")
    if attention and not any(attention):
        raise VerisimError(
            "The text is read where the network attends, and `attention` is false at every level. Set it to true "
            "for at least the coarsest."
        )


def with_text(net: UNet | DiT, reader: Reader, encoder: TextEncoder | None) -> TextNet:
    """net behind its text encoder."""
    assert isinstance(net, UNet)
    return TextNet(net, encoder, reader)


def texts_or_error(texts: Sequence[str] | None) -> Sequence[str]:
    """texts; VerisimError where there are none."""
    if not texts:
        raise VerisimError(
            "This model learns from texts, and the images have none. Choose the manifest column that holds them "
            "with --data.text COLUMN (for the chest phantoms: --data.text report)."
        )
    return texts
