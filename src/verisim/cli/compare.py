"""`verisim compare`: several generators, the same real images, one verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from verisim.cli.parser import Parser, data_of_run

EXAMPLES = """\
  verisim compare runs/diffusion runs/gan --out judged
  verisim compare runs/diffusion made_elsewhere/ --data.folder my_images --data.size 64
  verisim compare runs/diffusion runs/gan -n 300 --quick
  verisim compare runs/diffusion --features inception=inception.safetensors      FID as well
"""


def main(argv: list[str], verb: str = "compare", examples: str = EXAMPLES) -> int:
    from verisim.data.atomic import atomic_write
    from verisim.metrics.features import build, with_stored
    from verisim.metrics.protocols.fair import PRESETS
    from verisim.reports.html import comparison_report
    from verisim.tasks.comparison import compare, held_out, show_progress
    from verisim.tasks.contestants import open_source
    from verisim.training.source import DataSettings, open_dataset

    text = "Judge generators against held-out real images: numbers with intervals, controls, an HTML report."
    parser = Parser(verb, text, examples)
    parser.add_argument(
        "sources", nargs="+", type=str, help="run folders, weights files or folders of images"
    )
    parser.add_argument("-n", "--count", type=int, default=1000, help="images to draw from each model")
    parser.add_argument("--out", type=str, default="judged", help="folder for report.html and results.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, wider intervals")
    parser.add_argument(
        "--anatomy", type=str, default="", help="measure anatomy as in this phantom, e.g. chest"
    )
    parser.add_argument(
        "--features",
        nargs="+",
        type=str,
        default=[],
        help="further feature networks: inception=FILE (printed as FID), domain=FILE (of save_features)",
    )
    data_of_run(parser, argv)
    parser.add_device()
    args = parser.parse_args(argv)
    data = DataSettings(**args.data.as_dict())
    dataset = open_dataset(data)
    real = held_out(dataset)
    preset = PRESETS["quick" if args.quick else "full"]
    settings = replace(preset, seed=args.seed, networks=with_stored(preset.networks, args.features))
    for name in args.features:  # a wrong file is found before images are drawn
        build(name, dataset["train"], steps=0)
    contestants = [
        open_source(s, args.count, real, seed=args.seed, contrasts=dataset.contrasts) for s in args.sources
    ]
    anatomy = args.anatomy or ("" if data.folder else data.phantom)
    out = Path(args.out)
    progress = show_progress(verb)
    results = compare(
        contestants, dataset, settings, anatomy=anatomy, progress=progress, memory=out / "measured"
    )
    atomic_write(out / "results.json", json.dumps(results, indent=1).encode())
    report = comparison_report(
        out / "report.html",
        results,
        samples={c.name: c.images for c in contestants},
        real=real,
        runs={c.name: c.report() for c in contestants},
        title="Which generator?" if len(contestants) > 1 else f"How good is {contestants[0].name}?",
        notes=list(dataset.notes),
        train=dataset["train"],
    )
    print(f"numbers: {out / 'results.json'}\nreport:  {report.resolve()}")
    return 0
