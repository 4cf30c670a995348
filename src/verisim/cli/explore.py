"""`verisim explore`: what the latents of an autoencoder do, and what they know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verisim.cli.parser import Parser, data_of_run
from verisim.errors import VerisimError, pick

EXAMPLES = """\
  verisim explore traverse runs/vae                          the eight busiest latents, on the first held-out image
  verisim explore traverse runs/vae --image knee.png --dims 3,17 --span 2
  verisim explore interpolate runs/vae --image a.png --to b.png
  verisim explore probe runs/vae --data.label kl_grade       what a linear readout finds, beside shuffled labels
"""


def main(argv: list[str]) -> int:
    what = argv[0] if argv and not argv[0].startswith("-") else ""
    parser = Parser("explore", "Look into the latent space of an autoencoder.", EXAMPLES)
    parser.add_argument("what", type=str, choices=[*ACTIONS], help="what to do")
    parser.add_argument("run", type=str, help="run folder or weights file of an autoencoder")
    parser.add_argument("--out", type=str, default="explored", help="folder to write to")
    parser.add_argument(
        "--image", type=str, default="0", help="an image file, or the number of a held-out image"
    )
    if what != "probe":
        parser.add_argument("--frames", type=int, default=9, help="pictures per strip; odd in a traversal")
    if what == "traverse":
        parser.add_argument("--dims", type=str, default="", help="latents, e.g. 3,17; default: the busiest")
        parser.add_argument("--count", type=int, default=8, help="how many latents, without --dims")
        parser.add_argument("--span", type=float, default=3.0, help="standard deviations to either side")
    if what == "interpolate":
        parser.add_argument("--to", type=str, default="1", help="the other end: a file or a number")
    data_of_run(parser, argv[1:])
    args = parser.parse_args(argv)
    return pick(ACTIONS, args.what, "action")(args)


def _open(args: Any) -> tuple[Any, Any, Any]:
    """Model, its data set, and the images that statistics are taken over (the training images)."""
    from verisim.hub.weights import load_model
    from verisim.tasks.exploration import require_latents
    from verisim.training.source import DataSettings, open_dataset

    model, card = load_model(args.run)
    require_latents(model)
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
    from verisim.tasks.exploration import latent_use, traverse

    model, dataset, train = _open(args)
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
    from verisim.tasks.exploration import interpolate

    model, dataset, _ = _open(args)
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


def _probe(args: Any) -> int:
    from verisim.data.atomic import atomic_write
    from verisim.metrics.latents import mutual_information_gap, probe
    from verisim.phantoms import PHANTOMS
    from verisim.tasks.exploration import latent_use
    from verisim.training.source import DataSettings

    model, _, train = _open(args)
    use = latent_use(model, train.pixels)
    codes = model.encode(train.pixels)
    data = DataSettings(**args.data.as_dict())
    numbers: dict[str, Any] = {"active": int(use.active.sum()), "latents": len(use.kl), "probes": {}}
    targets: dict[str, Any] = {} if train.labels is None else {data.label: train.labels}
    if not data.folder:
        made = pick(PHANTOMS, data.phantom, "phantom").make(data.count, data.seed, data.shape)
        known = {k: v[data.count // 5 :] for k, v in made.factors.items()}
        targets |= {k: v.float() for k, v in known.items() if len(v.unique()) > 1}
        numbers["mig"] = mutual_information_gap(codes, known)
    if not targets:
        raise VerisimError("Nothing to probe for: name a column of the manifest with --data.label COLUMN.")
    for name, target in targets.items():
        found = probe(codes, target, train.patients)
        numbers["probes"][name] = found
        print(f"{name:24} {found['measure']:18} {found['value']:6.3f}   shuffled {found['control']:6.3f}")
    atomic_write(Path(args.out) / "probes.json", json.dumps(numbers, indent=1).encode())
    return 0


def _number(word: str) -> int:
    if not word.strip().isdigit():
        raise VerisimError(f"--dims: '{word}' is no latent; give numbers, e.g. 3,17.")
    return int(word)


ACTIONS = {"traverse": _traverse, "interpolate": _interpolate, "probe": _probe}
