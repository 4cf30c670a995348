"""`verisim reproduce`: a published table or figure, run again and judged."""

from __future__ import annotations

from pathlib import Path

from verisim.cli.parser import Parser

EXAMPLES = """\
  verisim reproduce demo --scale smoke --out demo
  verisim reproduce 004 --scale small --data cxr_nih --out local/004
  verisim reproduce 004 --scale small --data cxr_nih --systems X-D-fix,X-G-fix --sizes 32
"""


def main(argv: list[str]) -> int:
    from verisim.reproductions import REPRODUCTIONS, reproduction
    from verisim.reproductions.result import SCALES, Options

    parser = Parser("reproduce", "Re-run a published table or figure and check its claims.", EXAMPLES)
    parser.add_argument("id", type=str, help=f"one of: {', '.join(REPRODUCTIONS)}")
    parser.add_argument("--scale", type=str, default="small", choices=list(SCALES))
    parser.add_argument(
        "--out", type=str, default="", help="working folder (default: local/ID); not to be committed"
    )
    parser.add_argument(
        "--results", type=str, default="", help="folder for the JSON and figures (default: OUT)"
    )
    parser.add_argument("--data", type=str, default="", help="folder of images; without it, phantoms")
    parser.add_argument("--sizes", type=str, default="", help="image sizes, e.g. 32,64")
    parser.add_argument("--seeds", type=int, default=0, help="training seeds per system")
    parser.add_argument("--count", type=int, default=0, help="images drawn from each trained model")
    parser.add_argument("--minutes", type=float, default=0.0, help="processor minutes per trained model")
    parser.add_argument("--systems", type=str, default="", help="recipe ids, e.g. X-D-fix,X-G-fix")
    parser.add_device()
    args = parser.parse_args(argv)
    out = Path(args.out or f"local/{args.id}")
    options = Options(
        scale=args.scale,
        out=out,
        results=Path(args.results) if args.results else out,
        data=args.data,
        sizes=tuple(int(s) for s in args.sizes.split(",") if s),
        seeds=args.seeds,
        count=args.count,
        minutes=args.minutes,
        systems=tuple(s for s in args.systems.split(",") if s),
    )
    for result in reproduction(args.id)(options):
        path = result.write(options.results)
        result.print()
        print(f"numbers: {path}")
        if result.report:
            print(f"report:  {result.report.resolve()}")
    return 0
