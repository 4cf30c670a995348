"""A learned prior over maps of discrete codes: p(k | class) = prod_i p(k_i | k_<i, class) in raster order.

Two networks: the gated PixelCNN over a categorical alphabet (2D), and a causal transformer (any number of
axes). Both start as the uniform distribution exactly, so an untrained prior is the source's own sampling
(source 001, section 5.4 and the fix of section 6 S6/S7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verisim.errors import VerisimError, pick
from verisim.models.autoregressive.gated_cache import GatedStackStepper
from verisim.models.autoregressive.gated_stack import GatedStack, covering_dilations
from verisim.models.autoregressive.heads import Categorical
from verisim.models.autoregressive.raster import FullForward, Stepper, raster_scan, uniforms
from verisim.nets.causal_transformer import CachedTransformer, CausalTransformer

CHUNK = 32  # maps that are drawn side by side; bounds memory
EMBEDDING = 32  # largest length of the vector that the gated PixelCNN sees for a code


@dataclass(frozen=True)
class PriorSettings:
    """What a prior is built from."""

    codes: int  # K, size of the alphabet
    grid: tuple[int, ...]  # G, positions per axis
    layers: int = 6
    channels: int = 128  # width of the network
    heads: int = 4  # attention heads; the transformer's alone
    dropout: float = 0.1  # probability
    num_classes: int = 0  # 0 = unconditional; one more class is kept for "no class"

    def __post_init__(self) -> None:
        if min(self.layers, self.channels, self.heads) < 1 or not 0 <= self.dropout < 1:
            raise VerisimError(
                f"A prior cannot be built with layers={self.layers}, channels={self.channels}, "
                f"heads={self.heads}, dropout={self.dropout}: layers, channels and heads are at least 1, and "
                "0 <= dropout < 1."
            )


class CodePrior(nn.Module):
    """Base of both priors: codes (B, *G) int64 in 0 ... K - 1, label (B,) int64 or None = no class."""

    body: nn.Module  # embeddings (B, I, R, W), label -> logits (B, K, R, W)

    def __init__(self, settings: PriorSettings, inputs: int) -> None:
        super().__init__()
        self.settings = settings
        self.head = Categorical(settings.codes)
        self.raster = (math.prod(settings.grid[:-1]), settings.grid[-1])  # (R, W): raster order on two axes
        self.embed = nn.Embedding(settings.codes, inputs)
        self.classes = settings.num_classes + 1 if settings.num_classes else 0  # the last: no class

    def cached_stepper(self, n: int, label: Tensor | None) -> Stepper:
        """The fast way to walk over n maps."""
        raise NotImplementedError

    def labels(self, n: int, label: Tensor | None) -> Tensor | None:
        """The label that the network takes: None for an unconditional prior, else (n,) with "no class" filled in."""
        if not self.classes:
            return None
        if label is None:
            return torch.full((n,), self.settings.num_classes, device=self.embed.weight.device)
        return label

    def forward(self, codes: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits (B, K, *G) float32 of every position given those before it."""
        x = self.embed(codes.reshape(len(codes), *self.raster)).permute(0, 3, 1, 2)  # (B, I, R, W)
        logits = self.body(x, self.labels(len(codes), label)).float()
        return logits.reshape(len(codes), -1, *self.settings.grid)

    def nll_bits(self, codes: Tensor, label: Tensor | None = None) -> Tensor:
        """-log2 p(k_i | k_<i, class) of every position, (B, *G)."""
        logits = self(codes, label).movedim(1, -1)  # (B, *G, K)
        return -self.head.log_prob(logits, codes) / math.log(2)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        label: Tensor | None,  # (n,) or None
        generator: torch.Generator,
        temperature: float = 1.0,  # > 0; divides the logits
        top_k: int = 0,  # draw among the k likeliest codes only; 0 = among all
        cached: bool = True,  # False runs the whole network for every position: the same maps, slower
    ) -> Tensor:
        """n code maps (n, *G) int64. Call in evaluation mode."""
        check_sampling(temperature, top_k)
        label = self.labels(n, label)
        device = self.embed.weight.device
        maps = []
        for rows in torch.arange(n).split(CHUNK):
            m, part = len(rows), None if label is None else label[rows.to(device)]
            u = uniforms(m, self.raster, generator, device)
            stepper = self.cached_stepper(m, part) if cached else self.full_stepper(m, part)
            maps.append(raster_scan(stepper, lambda p, v: self.draw(p, v, temperature, top_k), self.embed, u))
        return torch.cat(maps).view(n, *self.settings.grid)

    def full_stepper(self, n: int, label: Tensor | None) -> Stepper:
        """The slow way, without any memory."""
        return FullForward(self.body, n, self.raster, label, self.embed.embedding_dim)

    def draw(self, logits: Tensor, u: Tensor, temperature: float, top_k: int) -> Tensor:
        """Codes (B,) from logits (B, K) and uniforms (B, 2)."""
        if 0 < top_k < logits.shape[1]:
            least = logits.topk(top_k, 1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return self.head.draw(logits, u, temperature)


class GatedCodePrior(CodePrior):
    """Gated PixelCNN over code maps; 2D."""

    body: GatedStack

    def __init__(self, settings: PriorSettings) -> None:
        if len(settings.grid) != 2:
            raise VerisimError(
                f"The gated PixelCNN prior is for 2D code maps; these have {len(settings.grid)} axes. "
                "Use --model.prior transformer."
            )
        inputs = min(settings.channels, EMBEDDING)
        super().__init__(settings, inputs)
        self.body = GatedStack(
            inputs=inputs,
            outputs=settings.codes,
            channels=settings.channels,
            dilations=covering_dilations(settings.layers, settings.grid),
            num_classes=self.classes,
            dropout=settings.dropout,
        )
        for parameter in self.body.final.parameters():
            nn.init.zeros_(parameter)

    def cached_stepper(self, n: int, label: Tensor | None) -> Stepper:
        return GatedStackStepper(self.body, n, self.raster, label)


class TransformerCodePrior(CodePrior):
    """Causal transformer over code maps of any number of axes."""

    body: CausalTransformer

    def __init__(self, settings: PriorSettings) -> None:
        super().__init__(settings, settings.channels)
        nn.init.normal_(self.embed.weight, std=0.02)
        s = settings
        self.body = CausalTransformer(s.grid, s.codes, s.channels, s.layers, s.heads, self.classes, s.dropout)

    def cached_stepper(self, n: int, label: Tensor | None) -> Stepper:
        return CachedTransformer(self.body, n, self.raster[1], label)


PRIORS: dict[str, type[GatedCodePrior] | type[TransformerCodePrior]] = {
    "gated_pixelcnn": GatedCodePrior,
    "transformer": TransformerCodePrior,
}


def build_prior(name: str, settings: PriorSettings) -> CodePrior:
    """The prior of that name, untrained: uniform over all codes."""
    return pick(PRIORS, name, "prior")(settings)


def check_sampling(temperature: float, top_k: int) -> None:
    """VerisimError for a temperature or top_k that cannot be used."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise VerisimError(
            f"Sampling temperature {temperature:g} is not possible: it divides the logits, so it must be "
            "finite and above 0. Use 1 for the model itself, 0.8 ... 0.95 for cleaner images."
        )
    if top_k < 0:
        raise VerisimError(f"top_k is {top_k}; it must be 0 (draw among all codes) or more.")
