"""What a phantom is: images with exactly known factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError


@dataclass(frozen=True)
class Phantom:
    """Procedural images and the numbers they were drawn from."""

    images: Images  # pixels (n, 1, size, size) in [-1, 1]; labels (n,) class indices
    factors: dict[str, Tensor]  # name -> (n,) float32, exactly known

    def __post_init__(self) -> None:
        wrong = [k for k, v in self.factors.items() if tuple(v.shape) != (len(self.images),)]
        if wrong:
            raise VerisimError(
                f"Phantom: factor '{wrong[0]}' has shape {tuple(self.factors[wrong[0]].shape)}; "
                f"one number for each of the {len(self.images)} images is meant."
            )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class PhantomKind:
    """One entry of the registry: how to make this anatomy, and how to measure it in any image."""

    make: Callable[..., Phantom]  # make(n, seed=0, size=64, *, findings=True)
    measure: Callable[[Images], dict[str, Tensor]]  # pixels alone -> name -> (n,) float64
    class_names: tuple[str, ...]  # meaning of labels 0, 1, ...
