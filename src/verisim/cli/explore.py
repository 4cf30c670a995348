"""`verisim explore`: what the latents or codes of an autoencoder do, and what they know."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verisim.cli.parser import Parser, data_of_run
from verisim.errors import VerisimError, pick

EXAMPLES = """\
  verisim explore traverse runs/vae                          the eight busiest latents, on the first held-out image
  verisim explore traverse runs/vae --image knee.png --dims 3,17 --span 2
  verisim explore interpolate runs/vae --image a.png --to b.png
  verisim explore swap runs/vq --image a.png --to b.png       VQ-VAE: b's codes in the middle of a
  verisim explore swap runs/vq --region 4:12,0:16             ... in rows 4 to 11 of its code map
  verisim explore probe runs/vae --data.label kl_grade       what a linear readout finds, beside shuffled labels
  verisim explore grades runs/vae --data.label kl_grade      do reconstructions keep their grade? per grade
"""


def main(argv: list[str]) -> int:
    what = argv[0] if argv and not argv[0].startswith("-") else ""
    parser = Parser("explore", "Look into the latents or codes of an autoencoder.", EXAMPLES)
    parser.add_argument("what", type=str, choices=[*ACTIONS], help="what to do")
    parser.add_argument("run", type=str, help="run folder or weights file of an autoencoder")
    parser.add_argument("--out", type=str, default="explored", help="folder to write to")
    parser.add_argument(
        "--image", type=str, default="0", help="an image file, or the number of a held-out image"
    )
    if what not in ("probe", "grades"):
        parser.add_argument("--frames", type=int, default=9, help="pictures per strip; odd in a traversal")
    if what == "traverse":
        parser.add_argument("--dims", type=str, default="", help="latents, e.g. 3,17; default: the busiest")
        parser.add_argument("--count", type=int, default=8, help="how many latents, without --dims")
        parser.add_argument("--span", type=float, default=3.0, help="standard deviations to either side")
    if what in ("interpolate", "swap"):
        parser.add_argument("--to", type=str, default="1", help="the other image: a file or a number")
    if what == "swap":
        parser.add_argument(
            "--region", type=str, default="", help="code positions, first:end per axis; default: the middle"
        )
    parser.add_device()
    data_of_run(parser, argv[1:])
    args = parser.parse_args(argv)
    return pick(ACTIONS, args.what, "action")(args)


def _open(args: Any, require: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """Model, its data set, and the images that statistics are taken over (the training images).

    `require`: raises VerisimError for a model that cannot be explored this way.
    """
    from verisim.hub.weights import load_model
    from verisim.training.source import DataSettings, open_dataset

    model, card = load_model(args.run)
    require(model)
    dataset = open_dataset(DataSettings(**args.data.as_dict()))
    train = dataset["train"]
    if train.spec.shape != card.spec.shape:
        raise VerisimError(
            f"{args.run} takes images of {card.spec.shape}, the data have {train.spec.shape}. Set --data.size "
            f"{'x'.join(map(str, card.spec.size))}."
        )
    return model, dataset, train


def _image(word: str, dataset: Any, args: Any) -> Any:
    """One image (C, *S): a file read as the data were, or the number of a held-out one."""
    from verisim.data.folder import load_file
    from verisim.tasks.comparison import held_out
    from verisim.training.source import DataSettings

    if word.isdigit():
        real = held_out(dataset)
        if int(word) >= len(real):
            raise VerisimError(f"Image {word} asked for; there are {len(real)} held-out images, from 0.")
        return real.pixels[int(word)]
    data = DataSettings(**args.data.as_dict())
    window = None if data.low == data.high else (data.low, data.high)
    return load_file(word, dataset, window=window, fit=data.fit, enlarge=data.enlarge)[0]


def _traverse(args: Any) -> int:
    from verisim.data.atomic import atomic_write
    from verisim.reports.exploration import traversal_png, traversal_sliders, write_page
    from verisim.tasks.exploration import latent_use, require_latents, traverse

    model, dataset, train = _open(args, require_latents)
    use = latent_use(model, train.pixels)
    dims = [_number(d) for d in args.dims.split(",")] if args.dims else None
    image = _image(args.image, dataset, args)
    found = traverse(model, image, use, dims, args.count, args.frames, args.span)
    out = Path(args.out)
    numbers = {
        "active": int(use.active.sum()),
        "latents": len(use.kl),
        "kl_nats": use.kl.tolist(),
        "std": use.std.tolist(),
        "dims": found.dims,
        "change": found.change.tolist(),
        "jump": found.jump.tolist(),
    }
    atomic_write(out / "latents.json", json.dumps(numbers, indent=1).encode())
    atomic_write(out / "traversal.png", traversal_png(found, use))
    lead = (
        f"Each slider moves one latent by up to {args.span:g} standard deviations of the training images' latents; "
        f"all others stay. Beside it: where that latent acts. {numbers['active']} of {numbers['latents']} latents "
        f"are in use; these have the largest KL."
        if not args.dims
        else "The latents that were asked for."
    )
    page = write_page(
        out / "explorer.html", f"Latents of {Path(args.run).name}", lead, traversal_sliders(found, use)
    )
    print(
        f"{numbers['active']} of {numbers['latents']} latents in use. {out / 'traversal.png'}\n{page.resolve()}"
    )
    return 0


def _interpolate(args: Any) -> int:
    from verisim.data.mosaic import save_mosaic
    from verisim.reports.exploration import Slider, strip_png, write_page
    from verisim.tasks.exploration import interpolate, require_latents

    model, dataset, _ = _open(args, require_latents)
    a, b = (_image(word, dataset, args) for word in (args.image, args.to))
    frames = interpolate(model, a, b, args.frames)
    out = Path(args.out)
    save_mosaic(out / "interpolation.png", frames, len(frames))
    labels = [f"{i / (len(frames) - 1):.0%}" for i in range(len(frames))]
    wide = frames.shape[-1] / frames.shape[-2]
    slider = Slider(
        "From one image to the other", "reconstructions at both ends", strip_png(frames), labels, 0, wide=wide
    )
    page = write_page(out / "explorer.html", f"Between two images, {Path(args.run).name}", "", [slider])
    print(f"{out / 'interpolation.png'}\n{page.resolve()}")
    return 0


def _swap(args: Any) -> int:
    from verisim.data.atomic import atomic_write
    from verisim.reports.exploration import swap_png, swap_sliders, write_page
    from verisim.tasks.code_swap import growing_swap, middle_region, require_codes, swap_codes

    model, dataset, _ = _open(args, require_codes)
    a, b = (_image(word, dataset, args) for word in (args.image, args.to))
    region = _region(args.region) if args.region else middle_region(model.grid)
    found = swap_codes(model, a, b, region)
    frames, regions = growing_swap(model, a, b, region, args.frames)
    out = Path(args.out)
    numbers = {
        "grid": list(model.grid),
        "region": [list(r) for r in found.region],
        "codes_changed": found.swapped,
        "share_of_changed_pixels_inside_receptive_field": _finite(found.inside),
        "share_of_squared_change_inside_receptive_field": _finite(found.energy_inside),
    }
    atomic_write(out / "swap.json", json.dumps(numbers, indent=1).encode())
    atomic_write(out / "swap.png", swap_png(found))
    lead = (
        "Codes of one image replaced by those of another. Left end of the second slider: nothing replaced; right "
        "end: everything. Bright in the map: what the swapped block changed."
    )
    sliders = swap_sliders(found, frames, regions)
    page = write_page(out / "explorer.html", f"Swapped codes, {Path(args.run).name}", lead, sliders)
    print(
        f"{found.swapped} of {_positions(found.region)} codes differed; {_percent(found.inside)} of the changed "
        f"pixels lie in their receptive field. {out / 'swap.png'}\n{page.resolve()}"
    )
    return 0


def _grades(args: Any) -> int:
    from verisim.data.atomic import atomic_write
    from verisim.tasks.autoencoding import label_consistency, reconstruct, require_autoencoder
    from verisim.tasks.comparison import held_out

    model, dataset, train = _open(args, require_autoencoder)
    test = held_out(dataset)
    found = label_consistency(train.quantise(), test, reconstruct(model, test), dataset.class_names)
    print(f"{'':24} {'images':>6}  {'judge right':>11}  {'same after':>10}  taken for")
    for name, row in found.items():
        right, same = (_percent(row[k]) for k in ("accuracy_on_originals", "agreement"))
        print(f"{name:24} {row['n']:6}  {right:>11}  {same:>10}  {row['toward'] or '-'}")
    atomic_write(Path(args.out) / "grades.json", json.dumps(found, indent=1).encode())
    return 0


def _probe(args: Any) -> int:
    from verisim.data.atomic import atomic_write
    from verisim.metrics.latents import probe

    model, _, train = _open(args, _require_either)
    numbers, codes = _codes_in_use(model, train.pixels, Path(args.out))
    targets, factors = _targets(train, args)
    if not targets:
        raise VerisimError("Nothing to probe for: name a column of the manifest with --data.label COLUMN.")
    if factors and "latents" in numbers:
        from verisim.metrics.latents import mutual_information_gap

        numbers["mig"] = mutual_information_gap(codes, factors)
    for name, target in targets.items():
        found = probe(codes, target, train.patients)
        numbers["probes"][name] = found
        print(f"{name:24} {found['measure']:18} {found['value']:6.3f}   shuffled {found['control']:6.3f}")
    atomic_write(Path(args.out) / "probes.json", json.dumps(numbers, indent=1).encode())
    return 0


def _require_either(model: Any) -> None:
    """Latents or codes; the error of a model with neither names what has."""
    from verisim.roles import CodeSpace
    from verisim.tasks.exploration import require_latents

    if not isinstance(model, CodeSpace):
        require_latents(model)


def _codes_in_use(model: Any, pixels: Any, out: Path) -> tuple[dict[str, Any], Any]:
    """How latents or codes are used by images (N, C, *S), and (N, d) numbers for a probe to read."""
    from verisim.data.atomic import atomic_write
    from verisim.reports.exploration import usage_png
    from verisim.roles import CodeSpace
    from verisim.tasks.code_probe import code_features, code_use
    from verisim.tasks.exploration import latent_use

    if isinstance(model, CodeSpace):
        found = code_use(model, pixels)
        atomic_write(out / "usage.png", usage_png(found))
        counts = {"codes": model.codes, "perplexity": found.perplexity, "used": found.used}
        return {**counts, "probes": {}}, code_features(model, pixels)
    use = latent_use(model, pixels)
    return {"active": int(use.active.sum()), "latents": len(use.kl), "probes": {}}, model.encode(pixels).cpu()


def _targets(train: Any, args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to probe for: the labels, and on phantoms every factor that varies; and all factors."""
    from verisim.phantoms import PHANTOMS
    from verisim.training.source import DataSettings

    data = DataSettings(**args.data.as_dict())
    targets: dict[str, Any] = {} if train.labels is None else {data.label: train.labels}
    if data.folder:
        return targets, {}
    made = pick(PHANTOMS, data.phantom, "phantom").make(data.count, data.seed, data.shape)
    known = {k: v[data.count // 5 :] for k, v in made.factors.items()}
    return targets | {k: v.float() for k, v in known.items() if len(v.unique()) > 1}, known


def _number(word: str) -> int:
    if not word.strip().isdigit():
        raise VerisimError(f"--dims: '{word}' is no latent; give numbers, e.g. 3,17.")
    return int(word)


def _region(text: str) -> list[tuple[int, int]]:
    """'4:12,0:16' -> [(4, 12), (0, 16)]."""
    ends = [word.split(":") for word in text.split(",")]
    if not all(len(e) == 2 and all(w.strip().isdigit() for w in e) for e in ends):
        raise VerisimError(f"--region: '{text}' is no block; give first:end for each axis, e.g. 4:12,0:16.")
    return [(int(a), int(b)) for a, b in ends]


def _positions(region: Any) -> int:
    return math.prod(b - a for a, b in region)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.0%}"


ACTIONS = {
    "traverse": _traverse,
    "interpolate": _interpolate,
    "swap": _swap,
    "probe": _probe,
    "grades": _grades,
}
