"""Implicit development as a model of the catalogue: trained, stored and resumed like all others.

The function, its training step and what is assumed of scans are in development.py and fitting.py; step k of a run
sees what step k of `fit` sees. As a generator it draws nobody in particular: a latent from the Gaussian of the
subjects' latents and an age within the trained range. What it is for is `verisim grow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.models.base import GenerativeModel, SamplingOptions
from verisim.models.implicit.development import (
    CHUNK,
    Architecture,
    Development,
    bounded,
    scan_identities,
)
from verisim.models.implicit.fitting import (
    Drawer,
    Training,
    check_training,
    descend,
    optimisers,
    step_generator,
    unexplained,
)
from verisim.models.implicit.points import brain_masks, check_scans, grid

UNTRAINED = (26.0, 45.0)  # weeks between which an untrained model draws
JUDGED = 64  # training scans from which it is learned how much of a scan stays unexplained


@dataclass(frozen=True)
class DevelopmentOptions(SamplingOptions):
    """Sampling options."""

    age: float = 0.0  # weeks of all samples; 0 = drawn from the trained range


class ImplicitDevelopment(GenerativeModel):
    """Coordinates, age and a subject's latent -> intensity, trained on scans with patients and ages."""

    family = "implicit"
    Options = DevelopmentOptions
    options: DevelopmentOptions
    net: Development

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        ssl: bool = True,  # scans of a subject share a latent; else one per scan
        sgla: float = 0.1,  # probability of the global latent in place of the subject's; 0 = off
        latent: int = 128,  # entries of a latent; 0 = none: everybody is the average brain
        hidden: int = 128,  # width
        layers: int = 8,  # all of them, first and last included
        activation: str = "real_gabor",  # real_gabor | complex_gabor | sine | relu
        omega: float = 0.0,  # frequency w0; 0 = the activation's own
        bands: int = 0,  # octaves of Fourier features of the coordinates; 0 = none
        learn_global: bool = False,  # learn the global latent; the source's stays 0
        pixels: float = 0.05,  # share of a scan's voxels per step
        foreground: float = 0.9,  # share of them inside of the brain
        mirror: float = 0.5,  # probability of a mirrored scan, which counts as somebody else's
        mirror_axis: int = -1,  # left-right
        lr: float = 1e-4,  # AdamW
        weight_decay: float = 0.01,  # AdamW
        latent_lr: float = 1e-3,  # lazy Adam of the latents
        chunk: int = CHUNK,  # points that the network sees at a time; memory is proportional to it
        subjects: Sequence[str] = (),  # whose latents it holds; () = those of the training images
    ) -> None:
        super().__init__(spec, num_classes)
        if num_classes:
            raise VerisimError("A model of development knows ages, not classes: leave out --data.label.")
        self.automatic_optimization = False
        architecture = Architecture(ssl, latent, hidden, layers, activation, omega, bands, learn_global)
        self.settings = Training(
            1, sgla, 1, pixels, foreground, mirror, mirror_axis, lr, weight_decay, latent_lr, chunk
        )
        check_training(self.settings, spec.spatial_dims)
        self.net = Development(spec, subjects or ("nobody",), architecture)
        self.rows = torch.zeros(0, dtype=torch.long)  # (N,) of the table of latents, per training image
        self.images: Images | None = None  # that it is trained on
        self.usual = 0.0  # 95th percentile of `unexplained` over training scans; 0 = not measured
        self.drawer: Drawer | None = None

    # --- training ---------------------------------------------------------------------------------

    def meet(self, images: Images) -> None:
        """Make room for the subjects of these scans. Raises VerisimError if they name no patients or ages."""
        if images.ages is None:
            raise VerisimError(
                "A model of development needs the age of each scan: name the column of manifest.csv that holds it, "
                "in weeks, with --data.age COLUMN (phantoms: --data.phantom growing_brain --data.age age)."
            )
        ages = check_scans(images, images.ages, self.spec, "training")
        names = scan_identities(images, self.net.architecture.ssl)
        if tuple(dict.fromkeys(names)) != self.net.names:
            self.net.enrol(names)
        self.net.widen_ages(ages)
        self.rows, self.images = self.net.rows(names), images

    def optimizer(self) -> list[torch.optim.Optimizer]:
        """[AdamW of the network, lazy Adam of the latents]."""
        return list(optimisers(self.net, self.settings))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Random voxels of the batch's scans, both optimisers."""
        if self.drawer is None:
            self.drawer = Drawer(self.spec, self.settings)
        x = batch["image"].cpu()  # (B, C, *S); points are drawn where generators are: on the CPU
        rows = self.rows[batch["index"].cpu()]
        masks = brain_masks(Images(x, self.spec), None)  # (B, V)
        drawn = self.drawer.draw(x, masks, batch["age"].cpu(), rows, step_generator(self.seed, self.step))
        loss = torch.tensor(descend(self.net, drawn, self.settings.chunk, *self.optimizers()))
        self.is_finite(loss)
        self.log_parts({"loss": loss})

    def trial_loss(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The squared error of the points that the network sees at a time, with gradients for all parts."""
        s, b = self.settings, len(x)
        p = min(max(1, round(s.pixels * self.spec.dims / self.spec.channels)), max(1, s.chunk // b))
        points = grid(self.spec)[:p].to(x.device).expand(b, -1, -1)  # (B, P, d)
        ages = torch.full((b,), sum(UNTRAINED) / 2, device=x.device)
        latents = self.net.latents[torch.zeros(b, dtype=torch.long, device=x.device)]
        target = (x.flatten(2).transpose(1, 2)[:, :p] + 1) / 2  # (B, P, C)
        return (self.net(points, ages, latents) - target).square().mean()

    def finalise(self, x: Tensor, label: Tensor | None) -> None:
        """Learn how much of a scan of this kind stays unexplained, so that others can be told apart."""
        assert self.images is not None and self.images.ages is not None
        some = torch.linspace(0, len(x) - 1, min(JUDGED, len(x))).long()
        latents = bounded(self.sampling_development.latents.detach())[self.rows[some]]
        scans = self.images.subset(some)
        assert scans.ages is not None
        left = unexplained(self.sampling_development, scans, scans.ages, latents)
        self.usual = float(left.quantile(0.95))

    # --- files ------------------------------------------------------------------------------------

    def settings_to_rebuild(self) -> dict[str, Any]:
        """The subjects: names of patients as the manifest has them."""
        return {"subjects": list(self.net.names)}

    def extra_state(self) -> dict[str, Tensor]:
        return {"usual": torch.tensor(self.usual)}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        self.usual = float(state["usual"])

    # --- use --------------------------------------------------------------------------------------

    @property
    def sampling_development(self) -> Development:
        """The function to draw with: the moving average where there is one."""
        net = self.sampling_net
        assert isinstance(net, Development)
        return net

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) in [-1, 1] of nobody in particular, at ages of the trained range."""
        self.check_condition(n, condition)
        net = self.sampling_development
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        on = generator.device
        low, high = net.ages.tolist() if bool(torch.isfinite(net.ages).all()) else UNTRAINED
        ages = low + (high - low) * torch.rand(n, generator=generator, device=on).cpu()
        if self.options.age:
            ages = torch.full((n,), self.options.age)
        noise = torch.randn(n, net.architecture.latent, generator=generator, device=on).cpu()
        known = bounded(net.latents.detach()[::2]).cpu()  # (K, L)
        latents = bounded(known.mean(0) + known.std(0, correction=0) * noise)
        return net.draw(latents.to(self.device), ages).pixels.to(self.device)
