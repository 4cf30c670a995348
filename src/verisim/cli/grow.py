"""`verisim grow`: one scan of a brain, shown at other ages, with its growth curve."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from verisim.cli.parser import Parser
from verisim.errors import DataError, VerisimError

EXAMPLES = """\
  verisim grow runs/B-L --from-age 31 --to-age 40 scan.png
  verisim grow runs/B-K --from-age 40 --to-age 32 scan.nii.gz --frames 5 --out grown
  verisim grow runs/B-L scans --age age_weeks --to-age 40          a folder; ages from its manifest.csv
  verisim grow runs/B-L --average zero --from-age 26 --to-age 45   the average brain
"""


def main(argv: list[str]) -> int:
    parser = Parser("grow", "Show the brain of a scan at other ages, with its growth curve.", EXAMPLES)
    parser.add_argument("run", type=str, help="run folder or weights file of a model of development")
    parser.add_argument("scans", nargs="*", type=str, help="scan files, or folders of them")
    parser.add_argument("--from-age", type=float, default=0.0, help="weeks at the scan; 0 = by --age")
    parser.add_argument("--to-age", type=float, required=True, help="weeks to show it at")
    parser.add_argument("--age", type=str, default="age", help="column of the folder's manifest with ages")
    parser.add_argument(
        "--average", type=str, default="", choices=["", "zero", "mean"], help="nobody's brain"
    )
    parser.add_argument("--frames", type=int, default=9, help="ages shown, both ends included")
    parser.add_argument(
        "--steps", type=int, default=0, help="of fitting; 0 = the source's: 2000 in 2D, 1000 in 3D"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of fitting")
    parser.add_argument("--pixels", type=float, default=0.05, help="share of the voxels per step of fitting")
    parser.add_argument("--seed", type=int, default=0, help="of the voxels drawn")
    parser.add_argument("--force", action="store_true", help="draw scans too that the model explains badly")
    parser.add_argument("--out", type=str, default="grown", help="folder to write to, one folder per scan")
    parser.add_device()
    args = parser.parse_args(_words_first(argv))
    model, facts = _open(args)
    if args.average:
        return _average(args, model, facts)
    jobs = _scans(args, model)
    failed = [
        name for name, entry, age in jobs if not _one(args, model, facts, name, entry, age, len(jobs) == 1)
    ]
    if failed:
        print(f"{len(failed)} of {len(jobs)} scans could not be done; see above.")
    return 2 if failed else 0


def _words_first(argv: list[str]) -> list[str]:
    """Scans may stand behind options: the parser takes them only beside the run. All options but two take a value."""
    words: list[str] = []
    options: list[str] = []
    rest = iter(argv)
    for word in rest:
        if not word.startswith("-"):
            words.append(word)
            continue
        options.append(word)
        if word.startswith("--") and "=" not in word and word not in ("--force", "--help"):
            options += [v for v in [next(rest, None)] if v is not None]
    return words + options


def _open(args: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and what goes into every file's provenance."""
    from verisim.hub.weights import load_model, resolve
    from verisim.models.implicit.model import ImplicitDevelopment
    from verisim.training.checkpoint import read_metadata

    model, card = load_model(args.run)
    if not isinstance(model, ImplicitDevelopment):
        raise VerisimError(
            f"{args.run} is a model '{card.model}', which knows no ages. Train one that does: verisim train B-L."
        )
    digest = read_metadata(resolve(args.run))["sha256"]
    return model, {"recipe": card.recipe, "model": card.model, "weights_sha256": digest, "seed": args.seed}


def _scans(args: Any, model: Any) -> list[tuple[str, Any, float]]:
    """(name, entry, age) of every scan; DataError for one whose age is nowhere."""
    from verisim.data.ages import read_ages
    from verisim.data.listing import Entry, scan

    volumes = model.spec.spatial_dims == 3
    found = []
    for word in args.scans:
        path = Path(word)
        if path.is_dir():
            ages = {} if args.from_age else read_ages(path, args.age, volumes)
            found += [(e.name, e, args.from_age or ages[e.name]) for e in scan(path, volumes=volumes).entries]
        elif not args.from_age:
            raise VerisimError(f"{word}: how old is the subject? Give the weeks with --from-age.")
        else:
            found.append((path.name, Entry(word, path), args.from_age))
    if not found:
        raise VerisimError("No scans: name files or folders, or ask for --average zero.")
    return found


def _read(entry: Any, model: Any, run: str) -> tuple[Any, Any]:
    """The scan on the model's grid, read as the training scans were, and its affine."""
    import numpy as np

    from verisim.data.raw import spacing_of
    from verisim.data.single import load_single
    from verisim.data.spec import Images
    from verisim.training.run_data import reading_of

    found = load_single(entry, reading_of(run, model.spec, [entry.path]))
    pixels, affine = found.pixels, found.affine
    if affine is not None and model.spec.spacing is not None:
        mm, want = spacing_of(affine, model.spec.spatial_dims), model.spec.spacing
        if mm is not None and not np.allclose(mm, want, rtol=0.1):
            raise DataError(
                f"{entry.name}: its field of view would give voxels of {_mm(mm)} mm on the model's grid, which has "
                f"{_mm(want)} mm. Register and resample it to the training scans."
            )
    return Images(pixels[None], model.spec), affine


def _mm(spacing: Any) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing)


def _one(
    args: Any, model: Any, facts: dict[str, Any], name: str, entry: Any, age: float, alone: bool
) -> bool:
    """Grow one scan unless that is done; False if it cannot be. A single scan's error is raised."""
    from verisim.models.implicit.fitting import LatentFit
    from verisim.tasks.growth import grow, most_unexplained

    steps = args.steps or (2000 if model.spec.spatial_dims == 2 else 1000)
    out = Path(args.out) / name.replace("/", "__").replace("#", "_").removesuffix(".gz").rsplit(".", 1)[0]
    fit = {"steps": steps, "lr": args.lr, "pixels": args.pixels}
    story = {**facts, "scan": Path(entry.name).name, "scan_age": age, "to_age": args.to_age, "fit": fit,
             "frames": args.frames, "kind": "growth"}  # fmt: skip
    try:
        if _done(out, story):
            print(f"{name}: done before, in {out}")
            return True
        scan, affine = _read(entry, model, args.run)
        grown = grow(
            model, scan, age, args.to_age, args.frames, LatentFit(**fit), seed=args.seed, force=args.force
        )
    except VerisimError as e:
        if alone:
            raise VerisimError(f"{name}: {e}") from e
        print(f"{name}: {e}")
        return False
    _write(out, grown, story, affine, age)
    print(f"{name}: {_summary(model, grown)}; {grown.unexplained:.1%} of the scan unexplained; in {out}")
    limit = most_unexplained(model)
    if grown.unexplained > limit:
        print(
            f"{name}: WARNING: {grown.unexplained:.0%} unexplained is more than the {limit:.0%} allowed without --force; do "
            f"not trust these images."
        )
    return True


def _average(args: Any, model: Any, facts: dict[str, Any]) -> int:
    from verisim.tasks.growth import grow_average

    out = Path(args.out) / f"average-{args.average}"
    story = {**facts, "average": args.average, "from_age": args.from_age, "to_age": args.to_age,
             "frames": args.frames, "kind": "average growth"}  # fmt: skip
    if _done(out, story):
        print(f"average {args.average}: done before, in {out}")
        return 0
    grown = grow_average(model, args.average, args.from_age, args.to_age, args.frames)
    _write(out, grown, story, None, None)
    print(f"average {args.average}: {_summary(model, grown)}; in {out}")
    return 0


def _done(out: Path, story: dict[str, Any]) -> bool:
    """Whether this was done before; VerisimError if something else was."""
    file = out / "provenance.json"
    if not file.exists():
        return False
    if json.loads(file.read_text())["settings"] != story:
        raise VerisimError(f"{out} holds results of other settings. Choose another --out, or remove it.")
    return True


def _summary(model: Any, grown: Any) -> str:
    beyond, n = int(grown.shown.extrapolated.sum()), len(grown.shown.ages)
    low, high = model.sampling_development.ages.tolist()
    text = f"{n} ages"
    if beyond:
        text += f", {beyond} of them EXTRAPOLATED beyond the trained {low:.1f} to {high:.1f} weeks"
    return text


def _write(out: Path, grown: Any, story: dict[str, Any], affine: Any, age: float | None) -> None:
    """Images, film, curve; provenance.json last: it says that the rest is there."""
    from verisim.data.atomic import atomic_write
    from verisim.data.writers import write_image
    from verisim.reports.growth import curve_png, film_gif

    shown, heads = grown.shown, grown.heads
    suffix = ".png" if shown.images.spec.spatial_dims == 2 else ".nii.gz"
    ages, beyond = shown.ages.tolist(), shown.extrapolated.tolist()
    for k, (a, b) in enumerate(zip(ages, beyond)):
        path = out / f"{k:03d}-age-{a:.2f}{'-extrapolated' if b else ''}{suffix}"
        write_image(
            path, shown.images.pixels[k], shown.images.spec, {**story, "age": a, "extrapolated": b}, affine
        )
    atomic_write(out / "growth.gif", film_gif(shown))
    rows: list[list[Any]] = [["age_weeks", "extrapolated"], *[[f"{a:.3f}", b] for a, b in zip(ages, beyond)]]
    if heads is not None:
        dims = shown.images.spec.spatial_dims
        content = f"{'volume' if dims == 3 else 'area'} ({_unit(heads.unit, dims)})"
        curves = [
            (f"head circumference ({heads.unit})", heads.circumference.tolist()),
            (content, heads.content.tolist()),
        ]
        for label, values in curves:
            rows[0].append(label)
            for row, v in zip(rows[1:], values):
                row.append(f"{v:.3f}")
        atomic_write(out / "curve.png", curve_png(ages, beyond, curves, age))
    table = io.StringIO()
    csv.writer(table).writerows(rows)
    atomic_write(out / "curve.csv", table.getvalue().encode())
    facts = {"settings": story, "synthetic": True, "unexplained": grown.unexplained}
    atomic_write(out / "provenance.json", json.dumps(facts, indent=1).encode())


def _unit(length: str, dims: int) -> str:
    return {"mm": {2: "cm^2", 3: "mL"}, "pixels": {2: "pixels", 3: "voxels"}}[length][dims]
