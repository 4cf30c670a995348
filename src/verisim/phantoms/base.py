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

    images: Images  # pixels (n, C, *S) in [-1, 1]; labels (n,) class indices
    factors: dict[str, Tensor]  # name -> (n,) float32, exactly known
    segmentation: Tensor | None = None  # (n, 1, *S) uint8, codes that index PhantomKind.structures

    def __post_init__(self) -> None:
        wrong = [k for k, v in self.factors.items() if tuple(v.shape) != (len(self.images),)]
        if wrong:
            raise VerisimError(
                f"Phantom: factor '{wrong[0]}' has shape {tuple(self.factors[wrong[0]].shape)}; "
                f"one number for each of the {len(self.images)} images is meant."
            )
        meant = (len(self.images), 1, *self.images.spec.size)
        if self.segmentation is not None and tuple(self.segmentation.shape) != meant:
            raise VerisimError(
                f"Phantom: the segmentation has shape {tuple(self.segmentation.shape)}; one code for each "
                f"pixel, {meant}, is meant."
            )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class PhantomKind:
    """One entry of the registry: how to make this anatomy, and how to measure it in any image."""

    make: Callable[..., Phantom]  # make(n, seed=0, size=64, *, ...); size: int, (H, W) or (D, H, W)
    measure: Callable[[Images], dict[str, Tensor]]  # pixels alone -> name -> (n,) float64
    class_names: tuple[str, ...]  # meaning of labels 0, 1, ...
    spatial_dims: tuple[int, ...] = (2,)  # dimensions that `make` can draw; an int size means the first
    structures: tuple[str, ...] = ()  # meaning of the segmentation's codes 0, 1, ...; () = none
    lesions: tuple[int, ...] = ()  # codes of what no healthy person has
    findings: tuple[str, ...] = ()  # kinds of heads that `make(lesions=...)` can draw; () = no choice
    contrasts: tuple[
        str, ...
    ] = ()  # that `make(contrasts=...)` can draw, one channel each; () = one grey image
    report: Callable[[dict[str, Tensor]], tuple[str, ...]] | None = None  # factors -> a text per image


def full_size(
    size: int | tuple[int, ...],
    dims: tuple[int, ...],
    least: int,
    where: str,
) -> tuple[int, ...]:
    """The spatial size as a tuple: an int is the side of a square or cube of dims[0] dimensions.

    Raises VerisimError if the number of sides is not in `dims` or a side is below `least` pixels.
    """
    full = (size,) * dims[0] if isinstance(size, int) else tuple(size)
    if len(full) not in dims or min(full) < least:
        allowed = " or ".join(f"{d} sides" for d in dims)
        raise VerisimError(f"{where}: size={size}; {allowed} of at least {least} pixels are possible.")
    return full
