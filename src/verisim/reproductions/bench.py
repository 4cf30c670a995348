"""One bench for generators of images or volumes: what each set is measured by, and how its rows are read.

A row holds "fd" (per feature network), "ms_ssim" of pairs, "factors" of phantoms, and what `more` adds. Beside the
systems stand two controls, other real images and noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from verisim.data.folder import Dataset
from verisim.data.mosaic import save_mosaic
from verisim.data.spec import Images
from verisim.metrics.bootstrap import Estimate, pool
from verisim.metrics.controls import noise_like
from verisim.metrics.diversity import pairwise_ms_ssim
from verisim.metrics.features import FeatureNetwork, domain_features, random_features
from verisim.metrics.frechet import frechet_estimate
from verisim.metrics.marginals import compare_factors
from verisim.metrics.memo import Memo
from verisim.models import build_model
from verisim.phantoms import PHANTOMS
from verisim.reproductions.result import Options
from verisim.seeding import generator
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant
from verisim.training.memory import with_saved_bytes
from verisim.training.run_folder import RunFolder

More = Callable[[Images, Images, torch.Generator], dict[str, Any]]  # fakes, reals -> further measures


class BenchScale(Protocol):
    """What a scale says of a bench."""

    @property
    def count(self) -> int: ...  # real images and noise images of the controls
    @property
    def pairs(self) -> int: ...  # of images for MS-SSIM
    @property
    def domain_steps(self) -> int: ...  # training steps of the domain network; 0 = random features alone


class Bench:
    """Everything that a set of images is measured by, against the held-out real ones."""

    def __init__(
        self,
        options: Options,  # its working folder keeps what was measured
        scale: BenchScale,
        dataset: Dataset,
        kind: str,  # image or volume; seeds the resampling and the noise
        phantom: str,  # whose ruler applies where the images are phantoms
        more: More | None = None,
    ) -> None:
        self.train, self.real = dataset["train"].quantise(), held_out(dataset)
        self.kind, self.count, self.pairs = kind, scale.count, scale.pairs
        self.anatomy = "" if options.data else phantom
        self.memo, self.more = Memo(options.out / "measured"), more
        self.networks: list[FeatureNetwork] = [random_features(self.train)]
        if scale.domain_steps:
            self.networks.append(domain_features(self.train, 0, scale.domain_steps))

    @property
    def note(self) -> str:
        """Which feature networks measure, for a result's notes."""
        return "features: " + ", ".join(f"{n.label} {n.sha256[:12]}" for n in self.networks)

    def table(self, contestants: Sequence[Contestant]) -> dict[str, Any]:
        """ "rows": the measures of every contestant beside what it says of itself; "controls": those of the controls."""
        rows = {c.name: {"facts": c.facts, **self.row(c.images)} for c in contestants}
        return {"rows": rows, "controls": {name: self.row(x) for name, x in self.controls().items()}}

    def controls(self) -> dict[str, Images]:
        """Other real images, and noise."""
        n = min(self.count, len(self.train))
        return {
            "real": self.train.subset(torch.arange(n)),
            "noise": noise_like(self.real, n, generator(f"{self.kind} noise", 0)).quantise(),
        }

    def row(self, images: Images) -> dict[str, Any]:
        """All measures of a set of images; kept, so that a second call costs nothing."""
        parts = [f"{self.kind}s bench", images, self.real, self.pairs, [n.sha256 for n in self.networks]]
        return self.memo.fetch(parts, lambda: (self._measured(images), {}))[0]

    def _measured(self, images: Images) -> dict[str, Any]:
        rng = generator(f"{self.kind}s bench", 0)
        row: dict[str, Any] = {"fd": {}}
        for net in self.networks:
            estimate, corrected = frechet_estimate(net.embed(images, 16), net.embed(self.real, 16), rng)
            row["fd"][net.label] = {**estimate.as_dict(), "corrected": corrected}
        row["ms_ssim"] = pairwise_ms_ssim(images, rng, self.pairs).as_dict()
        if self.more is not None:
            row |= self.more(images, self.real, rng)
        if self.anatomy:
            row["factors"] = compare_factors(PHANTOMS[self.anatomy].measure, images, self.real, rng)
        return row


def save_pictures(folder: Path, contestants: Sequence[Contestant], shown: int) -> None:
    """SYSTEM.png in the folder: the first images of each system's first training seed."""
    for c in contestants:
        if c.name.endswith("@0"):
            save_mosaic(folder / f"{c.name[:-2].replace(':', '-')}.png", c.images.pixels[:shown], 8, scale=2)


def saved_megabytes(run: Path, train: Images) -> float:
    """MiB that a training step of a run's model keeps for the backward pass, for one image."""
    settings = dict(RunFolder(run).config()["model"])
    torch.manual_seed(0)
    model = build_model(settings.pop("name"), settings, train.spec).train()
    model.prepare(train.pixels[:16])
    others = [*model.parameters(), *model.buffers()]
    _, saved = with_saved_bytes(lambda: model.trial_loss(train.pixels[:1], None), others)
    return round(saved / 2**20, 3)


def systems_of(rows: dict[str, Any]) -> list[str]:
    """Names of systems in the rows SYSTEM@SEED, in order."""
    return list(dict.fromkeys(name.split("@")[0] for name in rows))


def of_system(rows: dict[str, Any], system: str, *path: str) -> Estimate | None:
    """An estimate at a path in the rows of a system, pooled over its training seeds; None if there is none."""
    found = []
    for name, row in rows.items():
        if name.split("@")[0] == system:
            for key in path:
                row = row[key]
            found.append(Estimate.from_dict(row))
    return pool(found) if found else None


def anatomy_distance(rows: dict[str, Any], system: str) -> float | None:
    """Mean over factors and seeds of the Wasserstein distance in real standard deviations."""
    values = [
        f["wasserstein"]
        for name, row in rows.items()
        if name.split("@")[0] == system
        for f in row.get("factors", {}).values()
        if f.get("wasserstein") is not None
    ]
    return sum(values) / len(values) if values else None


def shown(name: str, e: Estimate) -> str:
    """A named estimate with its interval, in words."""
    return f"{name} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"
