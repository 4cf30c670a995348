"""`verisim segment`: masks of a user's cases with a mean and a variance map, on the cases' own grids."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

from verisim.cli.parser import Parser, data_of_run
from verisim.errors import VerisimError

EXAMPLES = """\
  verisim segment runs/patch case7/ --ensemble 5 --steps 20          case7/t1.nii.gz, case7/flair.nii.gz, ...
  verisim segment runs/patch cases/ --out segmented                  many cases; killed, it goes on where it was
  verisim segment runs/patch cases/ --truth seg --codes 1,2,4        with Dice and HD95 against label maps
  verisim segment runs/patch                                         Dice, HD95, calibration on held-out images
"""
COLUMNS = ("case", "pixels", "volume_ml", "mean_variance", "dice", "hd95", "members", "seed")


def main(argv: list[str]) -> int:
    parser = Parser("segment", "Segment cases; mean and variance of an ensemble of masks.", EXAMPLES)
    parser.add_argument("run", type=str, help="run folder or weights file of a segmenting model")
    parser.add_argument(
        "cases", nargs="*", type=str, help="cases or folders of cases; none = the held-out images"
    )
    parser.add_argument("--out", type=str, default="segmented", help="folder to write to")
    parser.add_argument(
        "--ensemble", type=int, default=0, help="masks sampled per case (0 = the model's default)"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="steps per mask, 1 to 1000 (0 = the model's default)"
    )
    parser.add_argument("--sampler", type=str, default="", help="ddim (default), ddpm, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--contrasts", type=str, default="", help="words in the names of files, in training order"
    )
    parser.add_argument(
        "--truth", type=str, default="", help="word (or column) of label maps to compare with"
    )
    parser.add_argument(
        "--codes", type=str, default="", help="label codes of foreground, e.g. 1,2,4; default: all but 0"
    )
    parser.add_device()
    data_of_run(parser, argv)
    args = parser.parse_args(argv)
    model, spec, identity = _open(args)
    return _files(args, model, spec, identity) if args.cases else _held_out(args, model, spec, identity)


def _open(args: Any) -> tuple[Any, Any, str]:
    """The model with the chosen options, the spec of its images, the SHA-256 of its weights."""
    from verisim.hub.weights import load_model, resolve
    from verisim.models.segmentation.base import SegmentationModel
    from verisim.training.checkpoint import read_metadata

    model, card = load_model(args.run)
    if not isinstance(model, SegmentationModel):
        raise VerisimError(
            f"{args.run} is a {model.family} model and segments nothing. Train one that does, e.g. 'verisim train B-D'."
        )
    chosen = {k: getattr(args, k) for k in ("ensemble", "steps", "sampler") if getattr(args, k)}
    if chosen:
        model.configure_sampling(**chosen)
    return model, card.spec, str(read_metadata(resolve(args.run))["sha256"])


def _contrasts(asked: str, trained: tuple[str, ...], channels: int) -> tuple[str, ...]:
    """Words that tell files apart; VerisimError if their number or order cannot be that of training."""
    words = tuple(w.strip() for w in asked.split(",") if w.strip())
    if not words and channels > 1 and not trained:
        raise VerisimError(
            f"This model takes {channels} contrasts, and a weights file does not name them. Give the run folder, or "
            f"their words in the names of files, in training order: --contrasts t1,t2."
        )
    if not words:
        return trained
    text = ",".join(trained) or f"{channels} channel(s)"
    if len(words) != max(1, len(trained) or channels):
        raise VerisimError(f"--contrasts names {len(words)} where the model was trained on {text}.")
    low, known = [w.lower() for w in words], [t.lower() for t in trained]
    if trained and sorted(low) == sorted(known) and low != known:
        raise VerisimError(
            f"--contrasts {','.join(words)} is another order than in training: {text}. Give this order."
        )
    return words


def _reading(args: Any, spec: Any, words: tuple[str, ...], cases: list[Any]) -> Any:
    """How files are read: as in training, but for what the command line says."""
    from dataclasses import replace

    from verisim.training.run_data import reading_of

    how = reading_of(args.run, spec, cases[0].images)
    data = args.data
    other = how.other if data.low == data.high else (data.low, data.high)
    names = how.contrasts or (words if len(words) > 1 else ())
    return replace(how, other=other, fit=data.fit, enlarge=data.enlarge, contrasts=names)


def _files(args: Any, model: Any, spec: Any, identity: str) -> int:
    from verisim.data.atomic import atomic_write
    from verisim.data.cases import find_cases
    from verisim.tasks.segment_cases import CaseSettings, segment_case
    from verisim.training.run_data import settings_of
    from verisim.training.run_folder import RunFolder

    words = _contrasts(args.contrasts, settings_of(args.run).contrast_names, spec.channels)
    codes = _codes(args.codes)
    cases = [c for place in args.cases for c in find_cases(place, words, args.truth)]
    how = _reading(args, spec, words, cases)
    run = RunFolder(args.run)
    turns = tuple(run.config().get("orientations", ())) if run.config_path.exists() else ()
    settings = CaseSettings(seed=args.seed, orientations=turns, codes=codes, identity=identity)
    out, rows = Path(args.out), []
    for i, case in enumerate(cases):
        row = segment_case(model, case, how, out, settings)
        rows.append(row)
        text = f"{i + 1}/{len(cases)} {case.name}: {row['pixels']:,} pixels"
        text += f", {row['volume_ml']:.1f} mL" if "volume_ml" in row else ""
        text += f", Dice {row['dice']:.3f}, HD95 {row['hd95']:.1f}" if "dice" in row else ""
        print(text + ("" if row["again"] else " (done before)"), flush=True)
        for note in row["notes"]:
            print(f"  note: {note}", file=sys.stderr)
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(out / "cases.csv", table.getvalue().encode())
    print(f"masks, means, variances, pictures and cases.csv in {out}")
    return 0


def _codes(text: str) -> tuple[int, ...]:
    words = [w.strip() for w in text.split(",") if w.strip()]
    if not all(w.isdigit() and 0 < int(w) < 256 for w in words):
        raise VerisimError(f"--codes is '{text}'; give numbers from 1 to 255, e.g. 1,2,4.")
    return tuple(int(w) for w in words)


def _held_out(args: Any, model: Any, spec: Any, identity: str) -> int:
    """Scores on the images that were not trained on."""
    import json

    from verisim.data.atomic import atomic_write
    from verisim.tasks.segmentation import evaluate, summary
    from verisim.training.source import DataSettings, open_dataset

    dataset = open_dataset(DataSettings(**args.data.as_dict()))
    if dataset["train"].spec.shape != spec.shape:
        raise VerisimError(
            f"{args.run} takes images of {spec.shape} (channels, size), the data have "
            f"{dataset['train'].spec.shape}. Set --data.size and --data.image as in training."
        )
    if "test" not in dataset:
        raise VerisimError(
            "There are no held-out images: the data have no test split. Give cases to segment."
        )
    memory = Path(args.out) / "measured"
    scores = evaluate(model, dataset["test"], seed=args.seed, memory=memory, identity=identity)
    found = summary(scores)
    atomic_write(Path(args.out) / "held_out.json", (json.dumps(found, indent=1) + "\n").encode())
    for name, digits in (("dice", 3), ("hd95", 2)):
        e = found[name]
        print(
            f"{name} {e['value']:.{digits}f} [{e['low']:.{digits}f}, {e['high']:.{digits}f}] over {found['cases']} cases"
        )
    known = found["calibration"]
    rates = " ".join("-" if r is None else f"{r:.3f}" for r in known["error_rate"])
    ends = " ".join(f"{v:.2f}" for v in known["variance_up_to"])
    print(f"share of wrong pixels for a variance up to {ends}: {rates}")
    if known["auroc"] is not None:
        print(f"AUROC of the variance for wrong pixels: {known['auroc']:.3f}")
    return 0
