"""Source 002, its tables of resources (spec 002, sections P and D.6): counted here without allocating, beside what it prints.

Networks of the source's own sizes are built on PyTorch's meta device, shapes without numbers: parameters, and bytes that a
training step keeps for its backward pass. A small network is then really run, and the same bytes are found three ways:
by the counter on tensors without contents, by the counter on real ones, and by walking the graph that autograd built; what
the allocator handed out stands beside the counted peak. Control: a count that forgets how skips are joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from verisim.data.atomic import atomic_write
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.models.base import GenerativeModel
from verisim.models.diffusion.age_guided import AgeGuidedDiffusion
from verisim.nets.guided_unet import SOURCE, GuidedUNet, Skip
from verisim.nets.implicit import CoordinateNet
from verisim.recipes import load_recipe
from verisim.reports.figures import COLOURS, figure_png
from verisim.reproductions.head_ct_memory import WIDTHS, memory_rows, saved_bytes
from verisim.reproductions.resources_claims import GIB, PUBLISHED, claims
from verisim.reproductions.result import Options, Result
from verisim.seeding import generator
from verisim.training.memory import count_forward
from verisim.training.resources import measure

SYSTEMS = ("B-E", "B-F", "B-D")  # FullRes, HalfRes, PatchDDM
POINTS = {
    "3D": (3, 629_145),
    "2D": (2, 3277),
}  # axes, points of a step: a twentieth of 192 x 256^2 and of 256^2
LATENT = 128
MULTIPLES = tuple(c // SOURCE[0] for c in SOURCE)  # 1, 3, 4, 4, ... times the width


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    sides: tuple[int, ...]  # of the volumes whose step is counted, voxels
    concatenated: tuple[int, ...]  # widths of networks with concatenated skips
    widths: tuple[int, ...]  # m of position regression and autoencoder
    real_side: int  # of the volume of the step that is really run, voxels
    real_channels: tuple[int, ...]  # its network


SCALES = {
    "smoke": Scale((64, 128), (18, 29), (1, 16), 16, (4, 12)),
    "small": Scale((64, 128, 256), (16, 17, 18, 19, 20, 29), WIDTHS, 32, (8, 24, 32, 32)),
    "full": Scale((64, 128, 256), tuple(range(14, 30)), WIDTHS, 64, (16, 48, 64, 64)),
}


def run(options: Options) -> Iterator[Result]:
    """Count and compare; one result, in seconds."""
    if options.data:
        raise VerisimError("002-resources counts networks and reads no images. Leave out --data.")
    scale = SCALES[options.scale]
    numbers: dict[str, Any] = {
        "parameters": parameters(),
        "unet": unet_rows(scale),
        "systems": {name: system_row(name) for name in SYSTEMS},
        "anomaly": memory_rows(scale.widths),
        "points": point_rows(),
        "slices": slice_rows(),
        "measured": {skip: real_step(scale, skip) for skip in ("average", "concat")},
        "published": PUBLISHED,
        "scale": asdict(scale),
    }
    notes = [
        "float32; one volume, one batch of points or of patches per step; GiB are 2^30 bytes, GB 10^9; the source does "
        "not say which it means, nor whether its numbers hold the context of CUDA",
        "kept: tensors that the forward pass stores for the backward pass, weights left out, each storage once; training: "
        "weights, gradients, Adam and temporary results as well; all but the rows 'measured' are counted on tensors "
        "without contents, so no library's work space is in them",
        "the allocator's peak holds work space that is no tensor of the step: PyTorch's own 3D convolution, which some thin "
        "layers take on a CPU, unfolds its input to 27 times its size",
        "position regression and autoencoder have the layers that the specification proposes: the source prints its "
        "layers as pictures only",
    ]
    result = Result("002-resources", options.scale, claims(numbers), numbers, notes)
    png = memory_png(numbers)
    atomic_write(options.results / "figures" / result.name / "memory.png", png)
    yield result


# --- counted --------------------------------------------------------------------------------------


def parameters() -> dict[str, int]:
    """Name -> number of parameters of the networks whose number the source or its code fixes."""
    with torch.device("meta"):
        age = AgeGuidedDiffusion(ImageSpec((256, 256)))
        nets: dict[str, nn.Module] = {
            "U-Net, 8 channels": GuidedUNet(3, 8),
            "U-Net, 5 channels": GuidedUNet(3, 5),
            "real Gabor, 3D": CoordinateNet(1 + 3 + LATENT),
            "real Gabor, 2D": CoordinateNet(1 + 2 + LATENT),
            "sine, 3D": CoordinateNet(1 + 3 + LATENT, activation="sine"),
            "DDM denoiser": age.net.denoiser,
            "DDM age regressor": age.net.regressor,
        }
    return {name: count(net) for name, net in nets.items()}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def unet_rows(scale: Scale) -> dict[str, dict[str, Any]]:
    """'average 29, 128' -> parameters and bytes kept: the source's network by side, others by width and skip at 128^3."""
    wanted = [("average", SOURCE[0], side) for side in scale.sides]
    wanted += [("sum", SOURCE[0], 128), *[("concat", w, 128) for w in scale.concatenated]]
    rows = {}
    for skip, width, side in wanted:
        with torch.device("meta"):
            net = unet(skip, width)  # type: ignore[arg-type]
        rows[f"{skip} {width}, {side}"] = {
            "skip": skip,
            "width": width,
            "side": side,
            "parameters": count(net),
            "saved_bytes": kept(net, 8, side),
        }
    return rows


def unet(skip: Skip, width: int, channels: int = 8) -> GuidedUNet:
    """The source's network, other widths and skips."""
    return GuidedUNet(3, channels, 1, tuple(width * m for m in MULTIPLES), skip=skip)


def kept(net: nn.Module, channels: int, *size: int) -> int:
    """Bytes kept by a step on one volume (1, channels, side, side, side), or (1, channels, *size)."""
    size = size * 3 if len(size) == 1 else size
    x = torch.empty(1, channels, *size, device="meta")
    return saved_bytes(net, lambda: net(x, torch.zeros(1, device="meta")).square().mean())


def system_row(name: str) -> dict[str, Any]:
    """A step of FullRes, HalfRes or PatchDDM with the recipe's own settings, and its network on a whole case without gradients."""
    settings = load_recipe(name).settings("source")
    model_settings = dict(settings["model"])
    side = int(str(settings["data"]["size"]).split("x")[0])
    spec = ImageSpec((side,) * 3, len(str(settings["data"]["contrasts"]).split(",")))
    model = build_model(model_settings.pop("name"), model_settings, spec)
    x = torch.empty(1, *spec.shape)  # address space alone: nobody writes to it
    found = measure(model, x, 1, timed=0)
    keys = ("parameters", "saved_bytes", "step_bytes", "training_bytes")
    seen = side // 2 if model_settings["train_on"] == "half" else side
    return {**{k: getattr(found, k) for k in keys}, "inference_bytes": _inference(model, seen)}


def _inference(model: GenerativeModel, side: int) -> int:
    """Weights, and the most alive at once while the network sees one volume of side^3 without gradients."""
    channels = next(model.net.parameters()).shape[1]  # of the first convolution
    with torch.device("meta"):
        net = GuidedUNet(3, channels)
        x, step = torch.empty(1, channels, *(side,) * 3), torch.zeros(1)
    return count_forward(lambda: net(x, step), net.parameters()) + 4 * count(net)


def point_rows() -> dict[str, dict[str, int]]:
    """'real_gabor, 3D' -> points of the source's step and bytes kept if the network sees them at once, and for twice as many."""
    rows = {}
    for activation in ("real_gabor", "sine", "complex_gabor", "relu"):
        for name, (axes, points) in POINTS.items():
            with torch.device("meta"):
                net = CoordinateNet(1 + axes + LATENT, activation=activation)
            once, twice = (_points_kept(net, n) for n in (points, 2 * points))
            rows[f"{activation}, {name}"] = {
                "points": points,
                "parameters": count(net),
                "saved_bytes": once,
                "twice": twice,
            }
    return rows


def _points_kept(net: CoordinateNet, points: int) -> int:
    x = torch.empty(1, points, net.inputs, device="meta")
    return saved_bytes(net, lambda: net(x).square().mean())


def slice_rows() -> dict[str, dict[str, int]]:
    """Denoiser and age regressor of DDM+GG on one slice of 256 pixels: bytes kept, and those of weights, gradients, Adam."""
    with torch.device("meta"):
        nets = AgeGuidedDiffusion(ImageSpec((256, 256))).net
    return {
        name: {"saved_bytes": kept(net, 1, 256, 256), "weights_bytes": 16 * count(net)}
        for name, net in (("DDM denoiser", nets.denoiser), ("DDM age regressor", nets.regressor))
    }


# --- measured -------------------------------------------------------------------------------------


def real_step(scale: Scale, skip: Skip) -> dict[str, Any]:
    """A step of a small PatchDDM: counted without contents, counted while it runs, found in autograd's graph, allocated."""
    model, x = small_model(scale, skip)
    counted = measure(model, x, 1, timed=3)
    real = saved_bytes(model, lambda: model.trial_loss(x, None))
    walked = graph_bytes(model.trial_loss(x, None), [*model.parameters(), *model.buffers()])
    return {
        "counted": counted.saved_bytes,
        "real": real,
        "graph": walked,
        "counted_peak": counted.step_bytes,
        "allocated_peak": allocated_peak(model, x),
        "seconds": counted.seconds,
    }


def small_model(scale: Scale, skip: Skip) -> tuple[GenerativeModel, Tensor]:
    """PatchDDM on four contrasts, crops of half the side, and a volume (1, 4, *S) of noise."""
    torch.manual_seed(0)
    settings = {"channels": scale.real_channels, "patch": scale.real_side // 2, "skip": skip}
    model = build_model("diffusion_segmentation", settings, ImageSpec((scale.real_side,) * 3, 4))
    return model, torch.rand(1, *model.spec.shape, generator=generator("resources")) * 2 - 1


def graph_bytes(loss: Tensor, without: list[Tensor]) -> int:
    """Bytes of all storages that the nodes of the loss's graph hold, but those of `without`.

    Read off the graph itself: nothing of verisim's counter is used.
    """
    others = {t.untyped_storage().data_ptr() for t in without}
    found: dict[int, int] = {}
    done, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in done:
            continue
        done.add(node)
        names = [n for n in dir(node) if n.startswith("_saved_") or n == "saved_tensors"]
        for value in (getattr(node, n) for n in names):
            for t in value if isinstance(value, tuple | list) else [value]:
                if isinstance(t, Tensor):
                    found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        waiting += [n for n, _ in node.next_functions]
    return sum(size for place, size in found.items() if place not in others)


def allocated_peak(model: GenerativeModel, x: Tensor) -> int:
    """Most bytes that PyTorch's allocator had handed out at once in a step, beside what there was before."""
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        model.trial_loss(x, None).backward()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    model.zero_grad()
    return peak


# --- figure ---------------------------------------------------------------------------------------


def memory_png(numbers: dict[str, Any]) -> bytes:
    """Memory by width: position regression and autoencoder (the source's figures 3 and 10), and skips of the U-Net."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (system, label, batch) in enumerate((("B-A", "position regression, 256 patches", "256"),
                                                ("B-B", "autoencoder, 4 volumes", "4"))):  # fmt: skip
        rows = [r for name, r in numbers["anomaly"].items() if name.startswith(system)]
        at = [r["width"] for r in rows], [r["saved_bytes"][batch] / GIB for r in rows]
        left.plot(*at, "o-", color=COLOURS[k], label=label, ms=4)
        for value in PUBLISHED["anomaly"][system][batch].values():
            left.axhline(value / 1024, color=COLOURS[k], lw=0.9, ls=":")
    left.set(xscale="log", yscale="log", xlabel="m", ylabel="GiB kept in a step",
             title="dotted: the source's best models, all memory")  # fmt: skip
    same = [r for r in numbers["unet"].values() if r["side"] == 128]
    for k, skip in enumerate(("concat", "average")):
        rows = sorted((r for r in same if r["skip"] == skip), key=lambda r: r["width"])
        at = [r["width"] for r in rows], [r["saved_bytes"] / GIB for r in rows]
        right.plot(*at, "o-", color=COLOURS[k + 2], label=f"{skip} skips", ms=4)
    average = next(r["saved_bytes"] for r in same if r["skip"] == "average")
    right.axhline(average / GIB, color="#777777", lw=0.9, ls=":")
    right.set(xlabel="width", title="one crop of 128$^3$")
    for ax in (left, right):
        ax.title.set_fontsize(9)
        ax.legend(fontsize=8, frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    return figure_png(figure)
