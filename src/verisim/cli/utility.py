"""`verisim utility`: do synthetic images help classifiers and detectors on real patients?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from verisim.cli.parser import Parser, data_of_run
from verisim.errors import VerisimError

EXAMPLES = """\
  verisim utility runs/diffusion --data.folder my_images --data.label finding -n 10000
  verisim utility runs/diffusion made_elsewhere/ --data.folder my_images --data.label finding --ratios 1 4
  verisim utility runs/diffusion --data.label label -n 1000 --quick          built-in phantoms
  verisim utility runs/diffusion --data.label label --tasks classifier reconstruction --normal "no finding"
"""

QUICK = {"steps": 80, "bootstrap": 300, "permutations": 3, "detector_steps": 150, "densenet_steps": 80}


def main(argv: list[str]) -> int:
    from verisim.data.atomic import atomic_write
    from verisim.reports.html import write_report
    from verisim.reports.utility import print_table, utility_report
    from verisim.tasks.downstream import DOWNSTREAM
    from verisim.tasks.utility import UtilitySettings, labelled_source, measure_utility
    from verisim.training.source import DataSettings, open_dataset

    text = (
        "Train classifiers and anomaly detectors with synthetic images and test them on held-out real ones."
    )
    parser = Parser("utility", text, EXAMPLES)
    parser.add_argument(
        "sources", nargs="+", type=str, help="conditional runs, weights files or labelled folders"
    )
    parser.add_argument(
        "-n", "--count", type=int, default=1000, help="images per generator (source 004 asks for 10000)"
    )
    parser.add_argument(
        "--ratios", nargs="+", type=float, default=[0.5, 1.0, 2.0], help="synthetic per real image"
    )
    parser.add_argument(
        "--label-column", type=str, default="label", help="class column in the folders' manifest.csv"
    )
    parser.add_argument(
        "--tasks", nargs="+", type=str, default=["classifier"], help=f"any of: {', '.join(DOWNSTREAM)}"
    )
    parser.add_argument(
        "--normal",
        type=str,
        default="",
        help="class that detectors learn from; empty: the one named like 'normal'",
    )
    parser.add_argument(
        "--growth", type=int, default=32, help="width of densenet121; 32 = CheXNet, 8 is faster"
    )
    parser.add_argument("--seeds", type=int, default=3, help="networks per experiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="shorter training, wider intervals")
    parser.add_argument("--out", type=str, default="utility", help="folder for utility.json and utility.html")
    data_of_run(parser, argv)
    parser.add_device()
    args = parser.parse_args(argv)
    data = DataSettings(**args.data.as_dict())
    if not data.label:
        raise VerisimError("Usefulness is measured by a label: name its column with --data.label COLUMN.")
    if data.normal:
        raise VerisimError(
            f"--data.normal '{data.normal}' leaves no labels to learn from. Say --normal '{data.normal}' instead."
        )
    short = QUICK if args.quick else {}
    settings = UtilitySettings(
        ratios=tuple(args.ratios),
        n_seeds=args.seeds,
        seed=args.seed,
        tasks=tuple(args.tasks),
        normal=args.normal,
        growth=args.growth,
        **short,
    )
    dataset = open_dataset(data)
    made = [labelled_source(s, args.count, dataset, args.label_column, args.seed) for s in args.sources]
    results = measure_utility(
        made, dataset, settings, lambda what: print(f"training on: {what}", file=sys.stderr)
    )
    out = Path(args.out)
    atomic_write(out / "utility.json", json.dumps(results, indent=1).encode())
    report = write_report(out / "utility.html", utility_report(results))
    print_table(results)
    print(f"numbers: {out / 'utility.json'}\nreport:  {report.resolve()}")
    return 0
