"""Utilities of source 002 (spec 002, section Q), each against what is exactly true of it, and a control."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verisim.data.nifti import read_nifti, write_nifti
from verisim.data.patches import coordinates, crop_coordinates, crop_starts, crops
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.diffusion.segmentation import DiffusionSegmenter, SegmentationOptions
from verisim.models.implicit.development import Architecture, Development
from verisim.models.implicit.fitting import Training, accumulate, fit
from verisim.models.implicit.points import draw_points
from verisim.models.implicit.progress import Progress
from verisim.phantoms import growing_brain
from verisim.seeding import generator
from verisim.tasks.head_parts import left_is_right
from verisim.training.memory import Ledger

PIECES = 16


def pieces(side: int) -> dict[str, Any]:
    """A volume of side^3 points drawn and learned from at once and in PIECES parts: differences, and bytes alive at once."""
    torch.manual_seed(0)
    spec = ImageSpec((side,) * 3)
    model = Development(spec, ("someone",), Architecture(latent=16, hidden=32, layers=4))
    latent, age = torch.randn(1, 16, generator=generator("pieces")), torch.tensor([35.0])
    chunks = {"whole": side**3, "pieces": side**3 // PIECES}
    drawn, grads, bytes_drawn, bytes_learned = {}, {}, {}, {}
    points = torch.rand(1, side**3, 3, generator=generator("points"))
    target = torch.rand(1, side**3, 1, generator=generator("target"))
    for name, chunk in chunks.items():
        with Ledger() as ledger:
            drawn[name] = model.draw(latent, age, chunk=chunk).pixels
        bytes_drawn[name] = ledger.peak
        model.zero_grad()
        with Ledger() as ledger:
            accumulate(model, points, age, latent, target, chunk)
        bytes_learned[name] = ledger.peak
        grads[name] = torch.cat([p.grad.flatten() for p in model.net.parameters() if p.grad is not None])
    whole = grads["whole"]
    return {
        "pieces": PIECES,
        "image_apart": float((drawn["whole"] - drawn["pieces"]).abs().max()),
        "gradient_apart": float((whole - grads["pieces"]).norm() / whole.norm()),
        "gradient_of_one_piece": _first_piece(model, points, age, latent, target, whole),
        "bytes_drawn": bytes_drawn,
        "bytes_learned": bytes_learned,
    }


def _first_piece(model: Development, points: Tensor, age: Tensor, latent: Tensor, target: Tensor, whole: Tensor) -> float:  # fmt: skip
    """Control: how far the gradient of the first piece alone is from that of all points."""
    model.zero_grad()
    n = points.shape[1] // PIECES
    accumulate(model, points[:, :n], age, latent, target[:, :n], n)
    alone = torch.cat([p.grad.flatten() for p in model.net.parameters() if p.grad is not None])
    return float((alone - whole).norm() / whole.norm())


def drawn_points(draws: int) -> dict[str, float]:
    """Drawing 5 % of the voxels, 90 % inside of a mask: how often shares are exact and none is drawn twice."""
    mask = torch.rand(4000, generator=generator("mask")) < 0.3
    want = round(0.05 * len(mask))
    right = 0
    for k in range(draws):
        at = draw_points(mask, 0.05, 0.9, generator("draw", k))
        right += len(at) == want == len(at.unique()) and int(mask[at].sum()) == round(0.9 * want)
    uniform = torch.randperm(len(mask), generator=generator("uniform"))[:want]
    return {"draws": draws, "right": right, "uniform_inside": float(mask[uniform].double().mean())}


def crop_places(n: int) -> dict[str, Any]:
    """Starts of n crops of 128 in 256 against the trapezoid's closed form: chi-square over its degrees of freedom."""
    short, long = np.ones(33) / 33, np.ones(97) / 97
    density = np.convolve(short, long)  # of 0...128
    found = {}
    for kind in ("trapezoid", "uniform"):
        starts = crop_starts((256,), 128, n, kind, generator("crops"))[:, 0]
        counts = torch.bincount(starts, minlength=129).double().numpy()
        found[kind] = float((((counts - n * density) ** 2) / (n * density)).sum() / 128)
    size, corner = (10, 12), torch.tensor([[3, 5]])
    full = crops(coordinates(size)[None], corner, (4, 4))
    found["coordinates_equal"] = bool(torch.equal(full, crop_coordinates(size, corner, (4, 4))))
    found["made_anew_apart"] = float((full[0] - coordinates((4, 4))).abs().max())
    return found


def ensemble() -> dict[str, float]:
    """Mean and variance of `predict` against those of the members themselves; control: of one member alone."""
    torch.manual_seed(0)
    model = DiffusionSegmenter(ImageSpec((8, 8)), channels=(4, 8), blocks=1, train_on="full")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.options = SegmentationOptions(steps=4, ensemble=5)
    x = torch.rand(2, 1, 8, 8, generator=generator("ensemble")) * 2 - 1
    members = torch.stack(list(model.members(x, 5)))
    found = model.predict(x)
    return {
        "mean_apart": float((found.mean - members.mean(0)).abs().max()),
        "variance_apart": float((found.variance - members.var(0, correction=0)).abs().max()),
        "variance": float(found.variance.max()),
        "one_member_apart": float((members[0] - members.mean(0)).abs().max()),
    }


def resuming(folder: Path, steps: int) -> dict[str, bool]:
    """Training stopped half way and gone on with, against never stopped: weights bit for bit; control: begun anew."""
    made = growing_brain.make(6, seed=0, size=16)

    def trained(*parts: int, file: str) -> Tensor:
        for n in parts:
            torch.manual_seed(0)
            model = Development.for_scans(made.images, Architecture(latent=4, hidden=8, layers=3))
            settings = Training(n, scans=2, pixels=0.2, lr=1e-2, latent_lr=1e-2)
            fit(model, made.images, made.factors["age"], settings, progress=Progress(folder / file))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    once = trained(steps, file="once.safetensors")
    return {
        "same": bool(torch.equal(once, trained(steps // 2, steps, file="twice.safetensors"))),
        "half_the_same": bool(torch.equal(once, trained(steps // 2, file="half.safetensors"))),
    }


def orientations(folder: Path) -> dict[str, int]:
    """A volume stored in all 48 orientations, written and read: how many come back equal; on which side its lesion is."""
    array = torch.rand(1, 5, 6, 7, generator=generator("orientations")).numpy()
    spacing, lesion = (3.0, 1.5, 0.8), np.array([2, 3, 6, 1])
    equal = told = right = ignored = refused = 0
    cases = list(product(permutations(range(3)), product((1, -1), repeat=3)))
    for k, (order, signs) in enumerate(cases):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, list(order)] * np.array(signs) * spacing
        affine[:3, 3] = (10.0, -20.0, 30.0)
        path = folder / f"{k}.nii.gz"
        path.write_bytes(write_nifti(array[0], affine, None, {"model": "none", "seed": k}, packed=True))
        raw = read_nifti(path)
        equal += bool(
            (raw.array == array).all() and raw.affine is not None and np.allclose(raw.affine, affine)
        )
        across = affine[:3, :3] @ (lesion[:3] - (np.array(array.shape[1:]) - 1) / 2)
        is_left = bool(across[0] < 0)  # RAS: the patient's left is at negative x
        try:
            left = left_is_right(raw.affine)  # the lesion lies in the last column
        except VerisimError:
            refused += 1
            continue
        told += 1
        right += left == is_left
        ignored += left_is_right(None) == is_left
    return {
        "orientations": len(cases),
        "equal": equal,
        "told": told,
        "right": right,
        "right_without_affine": ignored,
        "refused": refused,
    }
