"""The two scores of source 004 (section 3.7), as they were coded and with their flaws mended.

E2, discriminator loss: BCE(D(real), 1) + BCE(D(fake), 0) of a frozen GAN discriminator, one batch of 128,
read as "higher is better". As coded: VAE, autoregressive and diffusion samples enter in [0, 1] although D
learned on [-1, 1], and D stays in train mode, so batch norm uses the batch's own statistics.

E3, CNN score: mean p(real) over 128 fakes of a classifier that was, at 32 pixels, saved before it was
trained; 0.5 was then read as "easily detected" although it means "cannot tell".

They are here to show the artefact, not to rank anything.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.errors import RangeError, VerisimError, pick
from verisim.metrics.c2st import auc
from verisim.metrics.controls import noise_like
from verisim.metrics.judges import split_groups
from verisim.seeding import generator as seeded

BATCH = 128  # images in a score

SOURCE_RANGES: dict[str, tuple[float, float]] = {  # range in which the source handed over its samples
    "gan": (-1.0, 1.0),
    "vae": (0.0, 1.0),
    "autoregressive": (0.0, 1.0),
    "diffusion": (0.0, 1.0),
}


@dataclass(frozen=True)
class DiscriminatorLoss:
    """E2 of one set of fakes; larger means harder to detect in the source's reading."""

    score: float  # real_term + fake_term
    real_term: float  # BCE(D(real), 1): the same for every generator
    fake_term: float  # BCE(D(fake), 0)
    mean_p_real: float  # mean D(real)
    mean_p_fake: float  # mean D(fake)
    n: int  # images of each kind
    range_bug: bool  # fakes entered in the source's range instead of [-1, 1]
    train_mode: bool  # batch norm used the statistics of the judged batch

    def as_dict(self) -> dict:
        return asdict(self)


def _model_range(images: Images, what: str) -> Tensor:
    """First 128 images, which must be declared in [-1, 1]."""
    if (images.spec.low, images.spec.high) != (-1.0, 1.0):
        raise RangeError(
            f"{what}: images in [{images.spec.low:g}, {images.spec.high:g}]; the judges of source 004 take "
            f"[-1, 1]. Convert explicitly with Images.to_range(-1, 1)."
        )
    return images.pixels[:BATCH].float()


def _as_source(fake: Images, family: str) -> Tensor:
    """The first 128 fakes on the range in which the source scored this family."""
    low, high = pick(SOURCE_RANGES, family, "family of source 004")
    return fake.to_range(low, high).pixels[:BATCH].float()


@torch.no_grad()
def discriminator_loss(
    discriminator: nn.Module,
    real: Images,
    fake: Images,
    *,
    family: str,
    fixed: bool = False,
    output: str = "probability",
    range_bug: bool | None = None,
    train_mode: bool | None = None,
) -> DiscriminatorLoss:
    """E2 for one batch of 128 reals and fakes, both given in [-1, 1].

    discriminator: (B, C, *S) -> (B,) or (B, 1, ...) probabilities of being real, or logits with
    output="logit". family: key of SOURCE_RANGES, says in which range the source scored such samples.
    fixed=True mends range and mode; `range_bug` and `train_mode` switch each flaw alone. The
    discriminator is copied, so that train mode does not change its running statistics.
    """
    range_bug = (not fixed) if range_bug is None else range_bug
    train_mode = (not fixed) if train_mode is None else train_mode
    real.require_same_spec(fake, "discriminator loss")
    x = _model_range(real, "discriminator loss, real")
    y = _model_range(fake, "discriminator loss, fake")
    y = _as_source(fake, family) if range_bug else y
    n = min(len(x), len(y))
    if n < 2:
        raise VerisimError(f"discriminator loss: {n} images of one kind, at least 2 are needed (128 meant).")
    judge = copy.deepcopy(discriminator).train(train_mode)
    p_real, p_fake = (_probability(judge, v[:n], output) for v in (x, y))
    real_term = float(F.binary_cross_entropy(p_real, torch.ones_like(p_real)))  # clamped at 100, as coded
    fake_term = float(F.binary_cross_entropy(p_fake, torch.zeros_like(p_fake)))
    return DiscriminatorLoss(
        score=real_term + fake_term,
        real_term=real_term,
        fake_term=fake_term,
        mean_p_real=float(p_real.mean()),
        mean_p_fake=float(p_fake.mean()),
        n=n,
        range_bug=range_bug and pick(SOURCE_RANGES, family, "family of source 004") != (-1.0, 1.0),
        train_mode=train_mode,
    )


def _probability(judge: nn.Module, x: Tensor, output: str) -> Tensor:
    """(B,) probability of being real in float32, as the source computed it."""
    to_probability = pick({"probability": Tensor.float, "logit": Tensor.sigmoid}, output, "output kind")
    return to_probability(judge(x).reshape(len(x), -1).mean(1))


class ThesisClassifier(nn.Module):
    """E3's network: Conv 1 -> 32 -> 64 (3 x 3, padding 1), each ReLU and max-pool 2; FC -> 128 -> 1, sigmoid."""

    def __init__(
        self,
        channels: int = 1,  # C
        size: tuple[int, int] = (32, 32),  # (H, W)
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        flat = 64 * (size[0] // 4) * (size[1] // 4)
        self.fc = nn.Sequential(nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B,) probability of being real."""
        return self.fc(self.conv(x).flatten(1)).flatten().sigmoid()


def thesis_classifier(channels: int, size: tuple[int, ...], seed: int) -> ThesisClassifier:
    """An untrained classifier with PyTorch's default weights: uniform in +-1 / sqrt(fan-in)."""
    if len(size) != 2 or min(size) < 4:
        raise VerisimError(f"The classifier of source 004 takes 2D images of at least 4 x 4, got {size}.")
    with torch.random.fork_rng(devices=[]):  # building a layer draws from the global generator
        net = ThesisClassifier(channels, (size[0], size[1]))
    rng = seeded("thesis classifier", seed)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                bound = layer.weight[0].numel() ** -0.5
                for p in (layer.weight, layer.bias):
                    p.copy_((2 * torch.rand(p.shape, generator=rng) - 1) * bound)
    return net


def train_thesis_classifier(
    net: ThesisClassifier, real: Tensor, fake: Tensor, seed: int, epochs: int = 10, batch: int = 32
) -> None:
    """Adam 1e-3, batches of 32, BCE with real = 1 and fake = 0; images (N, C, H, W) in [-1, 1]."""
    x = torch.cat((real, fake)).float()
    y = torch.cat((torch.ones(len(real)), torch.zeros(len(fake))))
    rng = seeded("thesis classifier batches", seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.train()
    for _ in range(epochs):
        for pick_ in torch.randperm(len(x), generator=rng).split(batch):
            loss = F.binary_cross_entropy(net(x[pick_]), y[pick_])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    net.eval()


@dataclass(frozen=True)
class ClassifierScore:
    """E3 of one set of fakes."""

    mean_p_real: float  # the source's score: mean p(real) over (at most) 128 fakes
    auc: float | None  # held-out AUC real over fake; the source never looked (None unless fixed)
    control_auc: float | None  # the same recipe on real against noise, must be >= 0.99
    control_accuracy: float | None
    n_train: int  # images of each kind in training
    n_score: int  # fakes in the score
    untrained: bool
    fixed: bool

    def as_dict(self) -> dict:
        return asdict(self)


def classifier_score(
    real: Images,
    fake: Images,
    *,
    family: str,
    fixed: bool = False,
    untrained: bool = False,
    epochs: int = 10,
    seed: int = 0,
) -> ClassifierScore:
    """E3: train real against fake on 80 % (balanced), then score fakes; both given in [-1, 1].

    Literal: fakes are scored in the source's range, on images seen in training or not. untrained=True
    leaves out the training, as the source's 32-pixel script did. fixed=True scores held-out fakes in
    [-1, 1], adds the held-out AUC, and refuses (VerisimError) if the same recipe cannot tell real images
    from noise (AUC < 0.99 or accuracy < 0.95).
    """
    real.require_same_spec(fake, "classifier score")
    _model_range(real, "classifier score")
    control = None
    if fixed:
        noise = noise_like(real, len(real), seeded("thesis noise", seed))
        control = _train_and_hold_out(real, noise, untrained, epochs, seed)[1]
        if control[0] < 0.99 or control[1] < 0.95:
            raise VerisimError(
                f"This judge cannot tell real images from noise (held-out AUC {control[0]:.3f}, accuracy "
                f"{control[1]:.3f}; 0.99 and 0.95 are needed), so its scores mean nothing. "
                f"{'It was never trained. ' if untrained else ''}Train it longer or give more images."
            )
    net, (held_auc, _), held_fake, n_train = _train_and_hold_out(real, fake, untrained, epochs, seed)
    scored = held_fake.pixels[:BATCH].float() if fixed else _as_source(fake, family)
    with torch.no_grad():
        p = net(scored)
    return ClassifierScore(
        mean_p_real=float(p.mean()),
        auc=held_auc if fixed else None,
        control_auc=control[0] if control else None,
        control_accuracy=control[1] if control else None,
        n_train=n_train,
        n_score=len(p),
        untrained=untrained,
        fixed=fixed,
    )


def _train_and_hold_out(
    real: Images, fake: Images, untrained: bool, epochs: int, seed: int
) -> tuple[ThesisClassifier, tuple[float, float], Images, int]:
    """(judge, (held-out AUC, balanced accuracy), held-out fakes, images per class in training)."""
    rng = seeded("thesis split", seed)
    keep_r, held_r = split_groups(len(real), 0.2, rng, real.patients)
    keep_f, held_f = split_groups(len(fake), 0.2, rng, fake.patients)
    n = min(len(keep_r), len(keep_f))
    if n < 8 or min(len(held_r), len(held_f)) < 2:
        raise VerisimError(
            f"classifier score: {len(real)} real and {len(fake)} fake images; give at least 10 each."
        )
    net = thesis_classifier(real.spec.channels, real.spec.size, seed)
    if not untrained:
        train_thesis_classifier(net, real.pixels[keep_r[:n]], fake.pixels[keep_f[:n]], seed, epochs)
    net.eval()
    with torch.no_grad():
        p_r, p_f = net(real.pixels[held_r].float()), net(fake.pixels[held_f].float())
    accuracy = float(((p_r > 0.5).float().mean() + (p_f <= 0.5).float().mean()) / 2)
    return net, (auc(p_r, p_f), accuracy), fake.subset(held_f), n
