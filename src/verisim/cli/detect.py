"""`verisim detect`: where and how much an image differs from the normal ones that a model has learned."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from verisim.cli.parser import Parser, data_of_run
from verisim.errors import VerisimError

EXAMPLES = """\
  verisim detect runs/vae scan.png other.png --out found
  verisim detect runs/vae --data.label group --normal no_findings     the held-out images, with AUROC
  verisim detect runs/vae3d scan.nii.gz --rate 0.01
"""


def main(argv: list[str]) -> int:
    parser = Parser("detect", "Map what is unusual in images, calibrated on held-out normal ones.", EXAMPLES)
    parser.add_argument(
        "run", type=str, help="run folder or weights file of a model trained on normal images"
    )
    parser.add_argument("images", nargs="*", type=str, help="image files; none = the held-out images")
    parser.add_argument("--out", type=str, default="found", help="folder to write to")
    parser.add_argument("--normal", type=str, default="", help="class that is normal; empty = all images are")
    parser.add_argument("--rate", type=float, default=0.05, help="share of normal pixels above the threshold")
    data_of_run(parser, argv)
    args = parser.parse_args(argv)
    detector, dataset, data = _open(args)
    normal, rest = _held_out(dataset, args.normal)
    return (
        _files(args, detector, dataset, data, normal) if args.images else _judge(args, detector, normal, rest)
    )


def _open(args: Any) -> tuple[Any, Any, Any]:
    from verisim.hub.weights import load_model
    from verisim.tasks.anomaly import detector_of
    from verisim.training.source import DataSettings, open_dataset

    model, card = load_model(args.run)
    detector = detector_of(model)
    data = DataSettings(**args.data.as_dict())
    dataset = open_dataset(data)
    if dataset["train"].spec.shape != card.spec.shape:
        raise VerisimError(
            f"{args.run} takes images of {card.spec.shape}, the data have {dataset['train'].spec.shape}. Set "
            f"--data.size {'x'.join(map(str, card.spec.size))}."
        )
    return detector, dataset, data


def _held_out(dataset: Any, normal: str) -> tuple[Any, Any]:
    """Held-out normal images, and the others (None where all are normal)."""
    from verisim.tasks.comparison import held_out

    real = held_out(dataset)
    if not normal:
        return real, None
    if normal not in dataset.class_names:
        known = ", ".join(dataset.class_names) or "none; name a column with --data.label"
        raise VerisimError(f"No class '{normal}'. The data have: {known}.")
    mine = real.labels == dataset.class_names.index(normal)
    if bool(mine.all()):
        raise VerisimError(f"All held-out images are of class '{normal}', so there is nothing to find.")
    return real.subset(mine), real.subset(~mine)


def _judge(args: Any, detector: Any, normal: Any, rest: Any) -> int:
    """Half of the held-out normal patients set the threshold, the other half and the rest are judged."""
    import torch

    from verisim.metrics.judges import split_groups
    from verisim.tasks.anomaly import auroc, calibrate, scores

    if rest is None:
        raise VerisimError(
            "Give image files, or say which class is normal: --data.label COLUMN --normal CLASS."
        )
    rng = torch.Generator().manual_seed(0)
    first, second = (normal.subset(i) for i in split_groups(len(normal), 0.5, rng, normal.patients))
    known = calibrate(detector, first, args.rate)
    quiet, loud = (scores(detector.anomaly_map(x.pixels)) for x in (second, rest))
    found = auroc(loud, quiet)
    print(
        f"AUROC {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] over {len(quiet)} normal, {len(loud)} other"
    )
    print(f"flagged at p <= {args.rate:g}: {float((known.p_values(quiet) <= args.rate).double().mean()):.1%} of the "
          f"normal, {float((known.p_values(loud) <= args.rate).double().mean()):.1%} of the others")  # fmt: skip
    return 0


def _files(args: Any, detector: Any, dataset: Any, data: Any, normal: Any) -> int:
    from verisim.data.atomic import atomic_write
    from verisim.data.folder import load_file
    from verisim.data.writers import write_map
    from verisim.reports.anomaly import overlay_png
    from verisim.tasks.anomaly import calibrate, scores

    known = calibrate(detector, normal, args.rate)
    window = None if data.low == data.high else (data.low, data.high)
    out, rows = Path(args.out), [["image", "score", "p_value", "share_above_threshold", "map"]]
    for file in args.images:
        image, affine = load_file(file, dataset, window=window, fit=data.fit, enlarge=data.enlarge)
        found = detector.anomaly_map(image[None])
        score = scores(found)
        p = float(known.p_values(score))
        name = Path(file).name.removesuffix(".gz").rsplit(".", 1)[0]
        path = write_map(
            out / f"{name}.map.nii.gz", found[0], affine, {"image": Path(file).name, "run": args.run}
        )
        atomic_write(out / f"{name}.png", overlay_png(image, found[0], known.pixel))
        share = float((found > known.pixel).double().mean())
        rows.append([file, f"{float(score):.5f}", f"{p:.4f}", f"{share:.4f}", path.name])
        print(f"{file}: score {float(score):.4f}, p {p:.3f}, {share:.1%} of pixels above the threshold")
    table = io.StringIO()
    csv.writer(table).writerows(rows)
    atomic_write(out / "scores.csv", table.getvalue().encode())
    print(f"maps, overlays and scores.csv in {out}; thresholds from {len(normal)} held-out normal images")
    return 0
