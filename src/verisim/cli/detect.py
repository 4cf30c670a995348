"""`verisim detect`: where and how much an image differs from the normal ones that a model has learned."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verisim.cli.parser import Parser, data_of_run
from verisim.errors import DataError, VerisimError

EXAMPLES = """\
  verisim detect runs/vae scan.png other.png --out found
  verisim detect runs/vae --data.label group --normal no_findings     the held-out images, with AUROC
  verisim detect runs/ppr scan.nii.gz --rate 0.01 --stride 2
  verisim detect runs/ppr folder_of_scans --parts head_ct             left, right and skull; resumes if stopped
"""


def main(argv: list[str]) -> int:
    parser = Parser("detect", "Map what is unusual in images, calibrated on held-out normal ones.", EXAMPLES)
    parser.add_argument(
        "run", type=str, help="run folder or weights file of a model trained on normal images"
    )
    parser.add_argument(
        "images", nargs="*", type=str, help="image files or folders of them; none = the held-out images"
    )
    parser.add_argument("--out", type=str, default="found", help="folder to write to")
    parser.add_argument(
        "--normal", type=str, default="", help="class that is normal; empty = that of training"
    )
    parser.add_argument("--rate", type=float, default=0.05, help="share of normal pixels above the threshold")
    parser.add_argument("--parts", type=str, default="", help="score structures too: head_ct; empty = none")
    parser.add_argument(
        "--stride", type=int, default=0, help="pixels between patches of position regression; 0 = 4"
    )
    parser.add_argument(
        "--filter", type=str, default="", help="of a dense autoencoder's residual: none, median or erosion"
    )
    parser.add_argument(
        "--register", action="store_true", help="turn and shift scans onto the model's reference first"
    )
    parser.add_device()
    data_of_run(parser, argv)
    args = parser.parse_args(argv)
    detector, dataset, data = _open(args)
    normal, rest = _held_out(dataset, args.normal or data.normal)
    return (
        _files(args, detector, dataset, data, normal)
        if args.images
        else _judge(args, detector, dataset, normal, rest)
    )


def _open(args: Any) -> tuple[Any, Any, Any]:
    from verisim.hub.weights import load_model
    from verisim.tasks.anomaly import detector_of
    from verisim.training.source import DataSettings, open_dataset

    model, card = load_model(args.run)
    model.configure_sampling(**_options(args))
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


def _judge(args: Any, detector: Any, dataset: Any, normal: Any, rest: Any) -> int:
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
    quiet, loud = (
        torch.cat([scores(detector.anomaly_map(p).cpu()) for p in x.pixels.split(16)]) for x in (second, rest)
    )
    found = auroc(loud, quiet)
    print(
        f"AUROC {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] over {len(quiet)} normal, {len(loud)} other"
    )
    print(f"flagged at p <= {args.rate:g}: {float((known.p_values(quiet) <= args.rate).double().mean()):.1%} of the "
          f"normal, {float((known.p_values(loud) <= args.rate).double().mean()):.1%} of the others")  # fmt: skip
    for k, name in enumerate(dataset.class_names):
        mine = loud[rest.labels == k]
        if len(mine) and len(mine) < len(loud):
            one = auroc(mine, quiet)
            print(f"  {name}: AUROC {one.value:.3f} [{one.low:.3f}, {one.high:.3f}] over {len(mine)}")
    return 0


def _options(args: Any) -> dict[str, Any]:
    """Options of the model that were given."""
    given = {"stride": args.stride, "filter": args.filter}
    return {k: v for k, v in given.items() if v}


def _files(args: Any, detector: Any, dataset: Any, data: Any, normal: Any) -> int:
    from verisim.errors import pick
    from verisim.hub.weights import resolve
    from verisim.tasks.head_parts import bone_level
    from verisim.tasks.scanning import PARTS, Scanning, known_normals, list_scans, search
    from verisim.training.checkpoint import read_metadata

    if args.parts:
        pick(PARTS, args.parts, "set of parts")
    window = None if data.low == data.high else (data.low, data.high)
    facts = {
        "run": args.run,
        "weights_sha256": read_metadata(resolve(args.run))["sha256"],
        "data": dataset.fingerprint,
        "settings": {k: v for k, v in asdict(data).items() if k in ("low", "high", "fit", "enlarge")},
        "normal": args.normal or data.normal,
        "rate": args.rate,
        "parts": args.parts,
        "register": args.register,
        **_options(args),
    }
    reading = {"window": window, "fit": data.fit, "enlarge": data.enlarge}
    bone = bone_level(_window(dataset, data))
    reference = _reference(args, detector) if args.register else None
    scanning = Scanning(detector, dataset, reading, Path(args.out), facts, args.parts, bone, reference)
    entries = list_scans(args.images, volumes=normal.spec.spatial_dims == 3)
    known = known_normals(scanning, normal, args.rate)
    failed: list[DataError] = []
    for entry, row in search(scanning, entries, known):
        if isinstance(row, DataError):
            failed.append(row)
            print(f"left out: {row}", file=sys.stderr)
            continue
        parts = "".join(f", {k[2:]} p {v}" for k, v in row.items() if k.startswith("p_") and k != "p_value")
        print(f"{entry.name}: score {float(row['score']):.4f}, p {float(row['p_value']):.3f}{parts}, "
              f"{float(row['share_above_threshold']):.1%} of pixels above the threshold")  # fmt: skip
    print(
        f"maps, overlays and scores.csv in {args.out}; thresholds from {len(normal)} held-out normal images"
    )
    if failed:
        raise VerisimError(f"{len(failed)} of {len(entries)} images could not be read. First: {failed[0]}")
    return 0


def _reference(args: Any, detector: Any) -> Any:
    """The scan that a detector keeps to register others to."""
    if not hasattr(detector, "reference_scan"):
        raise VerisimError(
            f"{args.run} keeps no reference scan, so nothing can be registered to it: leave out --register."
        )
    return detector.reference_scan()


def _window(dataset: Any, data: Any) -> tuple[float, float]:
    """HU shown as black and white: as set, as found in the data, or the phantom's."""
    from verisim.phantoms.head_ct import WINDOW

    found = [w for w in dataset.window.values() if isinstance(w, tuple)]
    return (data.low, data.high) if data.low != data.high else found[0] if found else WINDOW
