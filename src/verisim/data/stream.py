"""An endless, deterministic stream of training batches: batch k depends on (seed, k) alone.

That makes resuming exact without saving any loader state: a run killed after k batches continues
with batch k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import IterableDataset

from verisim.data.spec import Images
from verisim.errors import DataError
from verisim.seeding import generator


class BatchStream(IterableDataset):
    """Batches from `first()` up to batch `total`, as dictionaries.

    'image' (B, C, *S) in [-1, 1]; 'label' (B,) int64 and 'mask' (B, 1, *S) uint8 codes where the images have them;
    'age' (B,) and 'index' (B,) into the images where ages are known; 'text' B strings where there are reports.

    Every image is seen once per pass before any is seen again; passes are reshuffled. With several
    ranks each batch of `batch_size * world_size` is cut into disjoint parts.
    """

    def __init__(
        self,
        images: Images,  # in [-1, 1]
        batch_size: int,  # images per rank and step
        total: int | None,  # number of batches in the whole run; None = endless
        first: Callable[[], int],  # how many batches have been seen already
        seed: int = 0,
        place: Callable[[], tuple[int, int]] = lambda: (0, 1),  # (rank, world size), asked when iterating
        parts: int = 1,  # equal ones that each batch comes in, one after the other; they divide batch_size
    ) -> None:
        if len(images) == 0:
            raise DataError("The training split is empty. Check the split column of manifest.csv.")
        if (images.spec.low, images.spec.high) != (-1.0, 1.0):
            raise DataError(
                f"Models are trained on [-1, 1]; these images are in [{images.spec.low:g}, "
                f"{images.spec.high:g}]. Convert with Images.to_range(-1, 1)."
            )
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; it must be at least 1.")
        self.images, self.batch_size, self.total, self.first = images, batch_size, total, first
        self.seed, self.place, self.parts = seed, place, parts

    def indices(self, k: int) -> torch.Tensor:
        """(B,) int64: which images batch k of this rank holds."""
        rank, world_size = self.place()
        n = len(self.images)
        start = (k * world_size + rank) * self.batch_size
        positions = range(start, start + self.batch_size)
        return torch.tensor([int(_permutation(self.seed, p // n, n)[p % n]) for p in positions])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        k = self.first()
        while self.total is None or k < self.total:
            for i in self.indices(k).chunk(self.parts):
                yield self._batch(i)
            k += 1

    def _batch(self, i: torch.Tensor) -> dict[str, Any]:
        """The images of indices (B,) with all that is known of them."""
        batch: dict[str, Any] = {"image": self.images.pixels[i]}
        if self.images.labels is not None:
            batch["label"] = self.images.labels[i]
        if self.images.segmentation is not None:
            batch["mask"] = self.images.segmentation[i]
        if self.images.ages is not None:
            batch["age"], batch["index"] = self.images.ages[i], i
        if self.images.texts is not None:
            batch["text"] = [self.images.texts[j] for j in i.tolist()]
        return batch


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> torch.Tensor:
    return torch.randperm(n, generator=generator("order", seed, epoch))
