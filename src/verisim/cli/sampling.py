"""Options of `verisim sample` beside drawing whole images: filling in a part of one, previews."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from verisim.cli.parser import Parser
from verisim.errors import VerisimError

if TYPE_CHECKING:
    import numpy as np

    from verisim.tasks.generation import Generated


def add_options(parser: Parser) -> None:
    """--inpaint, --mask, --resamples and --preview."""
    parser.add_argument(
        "--inpaint", type=str, default="", help="image to fill in; several contrasts: files, comma-separated"
    )
    parser.add_argument(
        "--mask",
        type=str,
        default="",
        help="with --inpaint: image of its size, white = make new, black = keep",
    )
    parser.add_argument(
        "--resamples", type=int, default=10, help="with --inpaint: times each step is walked (RePaint)"
    )
    parser.add_argument(
        "--preview",
        type=int,
        default=-1,
        help="write OUT/preview.png every so many steps; 0 = a tenth of them",
    )


def preview_of(args: Any, model: Any) -> Any:
    """The callback that --preview asks for, or None."""
    from verisim.tasks.preview import Preview, usual_interval

    if args.preview < 0:
        return None
    steps = getattr(model.options, "steps", 1)
    return Preview(Path(args.out) / "preview.png", args.preview or usual_interval(steps))


def fill(
    args: Any, model: Any, card: Any, label: int | None, callback: Any
) -> tuple[Generated, np.ndarray | None, dict]:
    """What --inpaint asks for: images, their affine if known, and what their files say beside the usual."""
    from verisim.data.loading import file_digest
    from verisim.data.single import load_single
    from verisim.tasks.inpainting import inpaint, part_to_make
    from verisim.training.run_data import reading_of

    if not args.inpaint or not args.mask:
        raise VerisimError(
            "--inpaint and --mask go together: an image, and a mask of its size, white where it is to be made new."
        )
    paths, mask = [Path(word) for word in args.inpaint.split(",")], Path(args.mask)
    image = load_single(paths, reading_of(args.source, card.spec, paths), mask)
    new = part_to_make(image, args.mask)
    made = inpaint(
        model, card, image.pixels, new, args.count, seed=args.seed, label=label, resamples=args.resamples,
        callback=callback,
    )  # fmt: skip
    files = [p for p in (*paths, mask) if p.is_file()]
    facts = {
        "part_real": True,  # what the mask leaves is the given image
        "share_made": round(float(new.float().mean()), 4),
        "resamples": args.resamples,
        "inpainted_sha256": [file_digest(p, p.stat().st_mtime_ns) for p in files],
    }
    return made, image.affine, facts
