"""`verisim readers`: let people judge, blinded. Make a study, serve it, score it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from verisim.cli.parser import Parser, data_of_run
from verisim.errors import VerisimError, pick

HELP = """usage: verisim readers make | serve | score ...

Let people judge generated images, blinded: which of two images is real, and how real does one look?

examples:
  verisim readers make runs/diffusion runs/gan --data.folder my_images --data.size 64 --out study
  verisim readers serve study                     readers open the page in a browser on this machine
  verisim readers score study                     error rates with intervals, agreement, score.html

  verisim readers make runs/diffusion --form --out study         form.html: one file, no server needed
  verisim readers score study answers-*.csv                      the files that form.html saves

'verisim readers make --help' explains each.
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP.rstrip())
        if argv:
            raise SystemExit(0)
        return 0
    return pick(COMMANDS, argv[0], "command of 'verisim readers'")(argv[1:])


def make(argv: list[str]) -> int:
    """Draw and choose images, write the study folder."""
    from verisim.tasks.comparison import held_out
    from verisim.tasks.contestants import open_source
    from verisim.tasks.reading import ReadingSettings, design
    from verisim.training.run_folder import environment
    from verisim.training.source import DataSettings, open_dataset
    from verisim.web.pages import write_form
    from verisim.web.study import write_study

    examples = HELP.split("examples:\n")[1].split("\n\n'")[0]
    parser = Parser(
        "readers make", "Make a blinded reader study from generated and held-out real images.", examples
    )
    parser.add_argument(
        "sources", nargs="+", type=str, help="run folders, weights files or folders of images"
    )
    parser.add_argument("--pairs", type=int, default=100, help="pairs real/generated per generator")
    parser.add_argument(
        "--ratings", type=int, default=20, help="single images per generator, and as many real"
    )
    parser.add_argument(
        "--real-pairs", type=int, default=20, help="pairs of two real images (must come out at one half)"
    )
    parser.add_argument(
        "--controls", type=int, default=10, help="pairs of real against noise or blurred images"
    )
    parser.add_argument("--out", type=str, default="study", help="new folder for the study")
    parser.add_argument(
        "--title", type=str, default="Real or made by a computer?", help="heading of the page"
    )
    parser.add_argument(
        "--form", action="store_true", help="also write form.html, for places without a server"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the images, sides and order")
    data_of_run(parser, argv)
    args = parser.parse_args(argv)
    settings = ReadingSettings(args.pairs, args.ratings, args.real_pairs, args.controls, args.seed)
    data = DataSettings(**args.data.as_dict())
    dataset = open_dataset(data)
    real = held_out(dataset)
    contestants = [open_source(s, settings.fakes, real, seed=args.seed) for s in args.sources]
    sheets = design(contestants, real, settings)
    facts = {
        "settings": asdict(settings),
        "data": {
            "fingerprint": dataset.fingerprint,
            "size": list(real.spec.size),
            "notes": list(dataset.notes),
        },
        "generators": {c.name: c.facts for c in contestants},
        "environment": environment(),
    }
    study = write_study(Path(args.out), sheets, args.title, facts)
    form = f"\nform:   {write_form(study)}" if args.form else ""
    print(
        f"study:  {study.folder} with {len(sheets)} items{form}\n"
        f"Next: verisim readers serve {study.folder}\n"
        f"The folder holds real images and key.json, which readers must not see."
    )
    return 0


def serve(argv: list[str]) -> int:
    """Serve a study to browsers on this machine."""
    parser = Parser(
        "readers serve",
        "Serve a reader study to browsers on this machine.",
        "  verisim readers serve study\n  verisim readers serve study --port 8001",
    )
    parser.add_argument("study", type=str, help="folder made by 'verisim readers make'")
    parser.add_argument("--port", type=int, default=8000, help="0 = any free one")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="address to listen on; the default is private"
    )
    args = parser.parse_args(argv)
    from verisim.web.server import serve as run
    from verisim.web.study import open_study

    run(open_study(args.study), args.host, args.port, lambda text: print(text, flush=True))
    return 0


def score(argv: list[str]) -> int:
    """Score a study's answers."""
    from verisim.data.atomic import atomic_write
    from verisim.metrics.readers import score as evaluate
    from verisim.reports.html import write_report
    from verisim.reports.reading import print_tables, reading_report
    from verisim.web.answers import AnswerBook, merged, read_csv
    from verisim.web.study import open_study, read_key

    parser = Parser(
        "readers score",
        "Error rates, ratings and agreement of a reader study.",
        "  verisim readers score study\n  verisim readers score study answers-anna.csv answers-ben.csv",
    )
    parser.add_argument("study", type=str, help="folder made by 'verisim readers make'")
    parser.add_argument("answers", nargs="*", type=str, help="CSV files saved by form.html")
    parser.add_argument(
        "--out", type=str, default="", help="folder for score.json and score.html (default: the study)"
    )
    args = parser.parse_args(argv)
    study = open_study(args.study)
    items, key = read_key(study)
    answers = merged([*AnswerBook(study).all(), *(a for f in args.answers for a in read_csv(f, study))])
    if not answers:
        raise VerisimError(
            f"{study.folder} has no answers yet. Serve it first: verisim readers serve {study.folder}"
        )
    results = {**evaluate(items, answers), "study": study.id, "title": study.title}
    results |= {k: key.get(k) for k in ("settings", "data", "generators", "environment")}
    out = Path(args.out or study.folder)
    atomic_write(out / "score.json", json.dumps(results, indent=1).encode())
    report = write_report(out / "score.html", reading_report(results))
    print_tables(results)
    print(f"numbers: {out / 'score.json'}\nreport:  {report.resolve()}")
    return 0


COMMANDS = {"make": make, "serve": serve, "score": score}
