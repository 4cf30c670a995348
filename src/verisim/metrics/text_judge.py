"""A judge of text and image together, and R-precision: is an image nearer to its own text than to others?

Two small encoders learn on real pairs to put an image and its text at the same place (CLIP: Radford 2021). With
R - 1 texts of others beside its own, an image that says nothing about its text finds it with probability 1 / R.
R-precision as in AttnGAN (Xu 2018), eq. none; R = 100 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, mean_estimate
from verisim.metrics.judges import SmallCNN, initialise, random_shift
from verisim.nets.text_encoder import TextEncoder
from verisim.seeding import generator as seeded
from verisim.text.words import FIRST, WordReader, split_words


@dataclass(frozen=True)
class TextJudgeSettings:
    """How a judge of pairs is trained; fixed for all entries of a comparison."""

    steps: int = 400  # optimiser steps
    batch: int = 64  # pairs per step
    width: int = 16  # channels of the first convolution
    dim: int = 32  # of the common space
    words: int = 1000  # most words of the vocabulary
    lr: float = 2e-3  # of AdamW, falling to 0 along half a cosine
    weight_decay: float = 0.05
    shift: int = 2  # largest random shift of the images in pixels; never a flip
    temperature: float = 0.1  # of the softmax over similarities


class TextJudge(nn.Module):
    """Images and texts -> unit vectors of one space."""

    def __init__(self, images: Images, reader: WordReader, settings: TextJudgeSettings) -> None:
        super().__init__()
        spec, dim = images.spec, settings.dim
        self.image = SmallCNN(spec.spatial_dims, spec.channels, dim, settings.width, max(spec.size))
        self.words = TextEncoder(reader.most + FIRST, reader.length, 2 * dim, 1)
        self.project = nn.Linear(2 * dim, dim)
        self.reader = reader

    def place_images(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> (B, dim)."""
        return F.normalize(self.image(x), dim=1)

    def place_numbers(self, numbers: Tensor) -> Tensor:
        """Word numbers (B, M) -> (B, dim); the mean over the words that are there."""
        there = (numbers > 0).sum(1, keepdim=True).clamp(min=1)
        return F.normalize(self.project(self.words(numbers).sum(1) / there), dim=1)

    @torch.no_grad()
    def similarity(self, x: Tensor, texts: Sequence[str]) -> Tensor:
        """(N, T) float64 cosine of every image (N, C, *S) with every text, of which it reads as many words as the
        longest text had that it learned from."""
        texts = [" ".join(split_words(t)[: self.reader.length]) for t in texts]
        a = torch.cat([self.place_images(part) for part in x.split(256)])
        b = self.place_numbers(self.reader.read(texts, strict=False))
        return a.double() @ b.double().T


def fit_text_judge(images: Images, settings: TextJudgeSettings | None = None, seed: int = 0) -> TextJudge:
    """A judge trained on real images in [-1, 1] and their texts; in eval mode. Images without a text are not used."""
    settings = TextJudgeSettings() if settings is None else settings
    rows = [i for i, t in enumerate(images.texts or ()) if split_words(t)]
    if len(rows) < 16:
        raise VerisimError(f"A judge of texts needs at least 16 images with a text; there are {len(rows)}.")
    used = images.subset(torch.tensor(rows))
    texts = used.texts or ()
    reader = WordReader(settings.words, max(len(split_words(t)) for t in texts))
    reader.learn(texts)
    numbers = reader.read(texts, strict=False)
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator when they are made
        torch.manual_seed(seed)
        judge = TextJudge(used, reader, settings)
    rng = seeded("text-judge", seed)
    initialise(judge.image, rng)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    judge.train()
    for _ in range(settings.steps):
        i = torch.randperm(len(texts), generator=rng)[: settings.batch]
        x = random_shift(used.pixels[i], settings.shift, rng)
        loss = pair_loss(
            judge.place_images(x), judge.place_numbers(numbers[i]), numbers[i], settings.temperature
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def pair_loss(a: Tensor, b: Tensor, numbers: Tensor, temperature: float) -> Tensor:
    """Cross entropy of images a (B, D) finding their texts b (B, D), and back; equal texts are equally right."""
    same = (numbers[:, None] == numbers[None]).all(2).float()  # (B, B)
    target = same / same.sum(1, keepdim=True)
    s = a @ b.T / temperature
    return (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2


def r_precision(
    judge: TextJudge,
    images: Images,  # in [-1, 1]
    texts: Sequence[str] | None = None,  # what each was asked for; images.texts by default
    *,
    candidates: int = 10,  # R: own text and R - 1 that say something else
    seed: int = 0,
    groups: Sequence[str] | None = None,  # patients, for the interval
) -> Estimate:
    """Share of images whose own text is the nearest of R; chance is 1 / R. Ties count as their share.

    VerisimError where there are fewer than R different texts.
    """
    texts = list((images.texts or ()) if texts is None else texts)
    if len(texts) != len(images) or not all(map(str.strip, texts)):
        raise VerisimError(
            f"R-precision: {len(texts)} texts for {len(images)} images. Give one for each, none empty."
        )
    distinct = list(dict.fromkeys(texts))
    if candidates < 2 or len(distinct) < candidates:
        raise VerisimError(
            f"R-precision: {len(distinct)} different texts; at least candidates = {candidates} (2 or more) are needed."
        )
    rng = seeded("r-precision", seed)
    s = judge.similarity(images.pixels, distinct)  # (N, T)
    own = torch.tensor([distinct.index(t) for t in texts])
    hits = []
    for row, mine in zip(s, own):
        order = torch.randperm(len(distinct), generator=rng)
        others = order[order != mine][: candidates - 1]
        ahead, level = (row[others] > row[mine]).sum(), (row[others] == row[mine]).sum()
        hits.append(0.0 if ahead else 1.0 / (1 + float(level)))
    return mean_estimate(torch.tensor(hits), 1000, seeded("r-precision-interval", seed), groups)
