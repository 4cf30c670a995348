"""Brain development as one function: coordinates, age and a subject's latent -> intensity (spec 002, section K).

    I^(x, t, l) = f_theta(x, t, l)
    theta, l*   = argmin sum over scans and random voxels (f_theta(x, t, l) - I(x, t))^2
    new subject: l^ = argmin_l sum_x (f_theta(x, t1, l) - I(x, t1))^2 with theta as it is, from l = 0
    at age t2:   I^(x, t2) = f_theta(x, t2, l^)

Most subjects are seen once. Two measures make age and identity separable all the same: one latent for all scans of
a subject (SSL), and now and then the latent of nobody, 0, in its place (SGLA), which so has to explain all ages.
The network works on brightness in [0, 1] with background 0; images are in [-1, 1] as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError, nearest
from verisim.models.implicit.points import AGE_UNIT, grid
from verisim.nets.implicit import CoordinateNet, fourier_features

CHUNK = 1 << 17  # points that the network sees at a time; memory is proportional to it
LATENT_BOUND = 1.0  # largest absolute entry of a latent; a longer one is scaled down as a whole


@dataclass(frozen=True)
class Architecture:
    """What the function is made of; the defaults are the source's."""

    ssl: bool = True  # subject-specific latents: scans of a subject share one; else one per scan
    latent: int = 128  # entries of a latent; 0 = none: everybody is the average brain (control)
    hidden: int = 128  # width
    layers: int = 8
    activation: str = "real_gabor"  # see nets.implicit.LAYERS
    omega: float = 0.0  # frequency w0; 0 = the activation's own
    bands: int = 0  # octaves of Fourier features of the coordinates; 0 = the coordinates themselves
    learn_global: bool = False  # learn the global latent; the source's stays 0


@dataclass(frozen=True)
class Rendering:
    """Images at given ages, and which of those lie outside of what the model was trained on."""

    images: Images  # n of them, in [-1, 1]
    ages: Tensor  # (n,) weeks
    extrapolated: Tensor  # (n,) bool


class Development(nn.Module):
    """f_theta(x, t, l), the latents of the subjects it was trained on, and the range of their ages.

    Raises VerisimError for settings that give no network, or no subjects.
    """

    ages: Tensor

    def __init__(
        self,
        spec: ImageSpec,  # of the scans: all are registered to one grid
        names: Sequence[str],  # identities with a latent; see for_scans
        architecture: Architecture,
    ) -> None:
        super().__init__()
        a = architecture
        if a.latent < 0 or a.bands < 0:
            raise VerisimError(f"latent={a.latent}, bands={a.bands}; both must be 0 or more.")
        if not names:
            raise VerisimError("A model of development needs at least one subject to learn from.")
        self.spec, self.architecture = spec, a
        inputs = 1 + spec.spatial_dims * (2 * a.bands or 1) + a.latent  # [t, x, y, z, l]
        self.net = CoordinateNet(inputs, spec.channels, a.hidden, a.layers, a.activation, a.omega)
        self.enrol(names)
        self.common = nn.Parameter(torch.zeros(a.latent), requires_grad=a.learn_global)  # l_G
        self.register_buffer("ages", torch.full((2,), math.nan))  # weeks: youngest, oldest

    def enrol(self, names: Sequence[str]) -> None:
        """Latents of 0 for these identities, in place of those there were."""
        self.names = tuple(dict.fromkeys(names))
        size = (2 * len(self.names), self.architecture.latent)  # rows 2k, mirrored 2k + 1
        self.latents = nn.Parameter(torch.zeros(size))

    def widen_ages(self, ages: Tensor) -> None:
        """Note that it is trained on scans of these ages (N,), in weeks."""
        low, high = ages.min(), ages.max()
        self.ages.copy_(torch.stack([self.ages[0].fmin(low), self.ages[1].fmax(high)]))

    @classmethod
    def for_scans(cls, images: Images, architecture: Architecture) -> Development:
        """An untrained model with the latents that these scans need; VerisimError if they name no patients."""
        return cls(images.spec, scan_identities(images, architecture.ssl), architecture)

    def forward(self, points: Tensor, ages: Tensor, latents: Tensor) -> Tensor:
        """Brightness (B, P, C), meant to be in [0, 1], at points (B, P, d) of B subjects with latents (B, L).

        ages (B,) in weeks.
        """
        b, p = points.shape[:2]
        t = (ages / AGE_UNIT).view(b, 1, 1).expand(b, p, 1)
        x = fourier_features(points, self.architecture.bands)
        return self.net(torch.cat([t, x, latents[:, None].expand(b, p, -1)], -1))

    # --- latents ----------------------------------------------------------------------------------

    def rows(self, names: Sequence[str]) -> Tensor:
        """(n,) int64 rows of the table for trained identities; VerisimError for an unknown one."""
        index = {name: 2 * k for k, name in enumerate(self.names)}
        for name in names:
            if name not in index:
                raise VerisimError(
                    f"'{name}' is none of the {len(index)} identities this model was trained on."
                    f"{nearest(name, index)} Find the latent of a new scan with fit_latents."
                )
        return torch.tensor([index[n] for n in names], device=self.latents.device)

    def latents_of(self, names: Sequence[str]) -> Tensor:
        """Latents (n, L) of trained identities: subjects, or 'subject/k' for scan k without SSL."""
        return bounded(self.latents.detach()[self.rows(names)])

    def average_latent(self, kind: str = "zero") -> Tensor:
        """(1, L) of nobody: 'zero' = the global latent, 'mean' = the mean of all subjects' (spec 002, O)."""
        if kind not in ("zero", "mean"):
            raise VerisimError(f"There is no average latent '{kind}'. Known: mean, zero.")
        latent = self.common if kind == "zero" else bounded(self.latents[::2]).mean(0)
        return latent.detach()[None]

    # --- rendering --------------------------------------------------------------------------------

    @torch.no_grad()
    def render(
        self,
        latents: Tensor,  # (n, L), or (1, L) for all ages
        ages: Tensor,  # (n,) weeks
        size: tuple[int, ...] | None = None,  # grid over the trained field of view; None = the trained one
        chunk: int = CHUNK,  # points at a time
    ) -> Rendering:
        """The subjects at these ages. Raises VerisimError for an untrained model or latents of another length."""
        ages = torch.as_tensor(ages, dtype=torch.float32).flatten()
        images = self.draw(self._check_latents(latents, len(ages)), ages, size, chunk)
        low, high = self.ages.cpu()
        return Rendering(images, ages, (ages < low) | (ages > high))

    @torch.no_grad()
    def draw(
        self, latents: Tensor, ages: Tensor, size: tuple[int, ...] | None = None, chunk: int = CHUNK
    ) -> Images:
        """Images of latents (n, L) at ages (n,); trained or not."""
        points = grid(self.spec, size)  # (V, d)
        size = self.spec.size if size is None else tuple(size)
        pixels = torch.empty(len(ages), self.spec.channels, *size)
        device = self.common.device
        for k, (age, latent) in enumerate(zip(ages, latents)):
            parts = [
                self(p[None].to(device), age[None].to(device), latent[None].to(device))[0].cpu()
                for p in points.split(chunk)
            ]
            y = torch.cat(parts).clamp(0, 1)  # (V, C)
            pixels[k] = (2 * y - 1).T.view(-1, *size)
        spacing = self.spec.spacing
        if spacing is not None:
            spacing = tuple(mm * s / n for mm, s, n in zip(spacing, self.spec.size, size))
        return Images(pixels, replace(self.spec, size=size, spacing=spacing))

    def check_trained(self) -> None:
        """Raise VerisimError if this model has seen no scan yet."""
        if not torch.isfinite(self.ages).all():
            raise VerisimError("This model of development is untrained: it knows no ages yet. Use fit first.")

    def _check_latents(self, latents: Tensor, n: int) -> Tensor:
        self.check_trained()
        if latents.ndim != 2 or len(latents) not in (1, n) or latents.shape[1] != self.architecture.latent:
            raise VerisimError(
                f"Latents of shape {tuple(latents.shape)} for {n} ages; (1, {self.architecture.latent}) or "
                f"({n}, {self.architecture.latent}) is meant."
            )
        return latents.expand(n, -1)


def bounded(latents: Tensor) -> Tensor:
    """Latents (n, L), those with an entry beyond LATENT_BOUND scaled down to it."""
    if latents.shape[1] == 0:
        return latents
    return latents / (latents.abs().amax(1, keepdim=True) / LATENT_BOUND).clamp(min=1)


def identities(patients: Sequence[str], ssl: bool) -> tuple[str, ...]:
    """Whose latent each scan has: with SSL the subject's, without it its own, 'subject/1', 'subject/2' ..."""
    if ssl:
        return tuple(patients)
    seen: dict[str, int] = {}
    names = []
    for p in patients:
        seen[p] = seen.get(p, 0) + 1
        names.append(f"{p}/{seen[p]}")
    return tuple(names)


def scan_identities(images: Images, ssl: bool) -> tuple[str, ...]:
    """`identities` of scans; VerisimError if they do not say whom they show."""
    if images.patients is None:
        raise VerisimError("Development: these scans do not say whom they show. Set Images.patients.")
    return identities(images.patients, ssl)
