"""`verisim sample`: images from a trained model, each marked as synthetic."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from verisim.cli.parser import Parser
from verisim.cli.sampling import add_options, fill, preview_of
from verisim.errors import VerisimError

EXAMPLES = """\
  verisim sample runs/first -n 16 --out samples
  verisim sample runs/first -n 1000 --seed 1 --format npz
  verisim sample runs/first -n 10000 --out samples --shard 2/4
  verisim sample runs/first -n 4 --inpaint image.png --mask mask.png
  verisim sample runs/first -n 8 --preview 0
  verisim sample runs/first -n 8 --class pneumonia --guidance 2 --steps 10
  verisim sample runs/t2i -n 8 --text "Cardiomegaly. No pleural effusion." --guidance 3
  verisim sample runs/t2i -n 8 --text "Cardiomegaly." --upscale runs/sr
"""

SUFFIXES = {"png": ".png", "nifti": ".nii.gz", "dicom": ".dcm", "npz": ".npz"}


def main(argv: list[str]) -> int:
    from verisim.data.mosaic import save_mosaic
    from verisim.data.writers import write_samples
    from verisim.hub.weights import load_model
    from verisim.models import model_class
    from verisim.tasks.generation import class_index, generate, parse_shard
    from verisim.training.run_data import settings_of

    source = argv[0] if argv and not argv[0].startswith("-") else ""
    card = _card(source) if source else None
    parser = Parser(
        "sample", "Draw images from a trained model. Every file says that it is synthetic.", EXAMPLES
    )
    parser.add_argument("source", type=str, help="run folder or weights file")
    parser.add_argument("-n", "--count", type=int, default=16, help="number of images")
    parser.add_argument("--out", type=str, default="samples", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same images")
    parser.add_argument("--class", type=str, default="", dest="label", help="class name or number")
    parser.add_argument("--text", type=str, default="", help="report to draw images of (text models)")
    parser.add_argument(
        "--upscale", type=str, default="", help="run of a super-resolution model to enlarge the images with"
    )
    parser.add_argument(
        "--format", type=str, default="", choices=["", *SUFFIXES], help="default: png, nifti in 3D"
    )
    parser.add_argument(
        "--shard",
        type=str,
        default="",
        help="draw part K of N, e.g. 2/4; all parts share a folder and a manifest",
    )
    parser.add_device()
    add_options(parser)
    options = model_class(card.model).Options if card else None
    if options:
        hints = get_type_hints(options)
        for f in fields(options):
            kind: Any = hints[f.name] | None
            parser.add_argument(f"--{f.name}", type=kind, default=None, help="sampling option of this model")
    args = parser.parse_args(argv)
    model, card = load_model(args.source)
    chosen = {f.name: getattr(args, f.name) for f in fields(model.Options)}
    model.configure_sampling(**{k: v for k, v in chosen.items() if v is not None})
    label = class_index(card, args.label) if args.label else None
    look, affine = preview_of(args, model), None
    facts: dict[str, Any] = {}
    if args.shard and (args.inpaint or args.upscale):
        raise VerisimError("--shard divides plain sampling; leave it out with --inpaint and --upscale.")
    if args.inpaint or args.mask:
        made, affine, facts = fill(args, model, card, label, look)
    else:
        texts = (args.text,) if args.text else ()
        rank, shards = parse_shard(args.shard)
        made = generate(
            model, card, args.count, seed=args.seed, label=label, texts=texts, callback=look, rank=rank, world_size=shards
        )  # fmt: skip
    provenance = {
        "recipe": card.recipe,
        "model": card.model,
        "weights_sha256": _digest(args.source),
        "seed": args.seed,
        "options": {f.name: getattr(model.options, f.name) for f in fields(model.options)},
        **facts,
    }
    if args.text:
        provenance["text"] = args.text
    if args.upscale:
        from verisim.tasks.upscaling import upscale

        made = upscale(made, args.upscale, seed=args.seed)
        provenance["upscaled_by_sha256"] = _digest(args.upscale)
    out = Path(args.out)
    suffix = SUFFIXES[args.format] if args.format else None
    contrasts = settings_of(args.source).contrast_names
    write_samples(
        out, made.images, provenance, suffix=suffix, class_names=card.class_names, affine=affine,
        contrasts=contrasts, places=made.places, total=args.count,
    )  # fmt: skip
    overview = out / f"overview{args.shard and '-' + args.shard.replace('/', '-of-')}.png"
    save_mosaic(overview, made.images.pixels[:64])
    print(f"{len(made.images)} images in {out} ({made.per_second:.1f} per second); {overview} shows them.")
    return 0


def _card(source: str) -> Any:
    from verisim.hub.weights import read_card, resolve

    return read_card(resolve(source))


def _digest(source: str) -> str:
    from verisim.hub.weights import resolve
    from verisim.training.checkpoint import read_metadata

    return read_metadata(resolve(source))["sha256"]
