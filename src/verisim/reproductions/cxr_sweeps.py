"""Source 004's sweeps (X-E4): learning rates and widths of its literal systems, judged fairly.

The source read its sweeps off a discriminator's loss, single seed, with the flaws that 004-artefact
shows. Here every point is a run of its own, from scratch, with the same processor time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from verisim.metrics.bootstrap import Estimate, tie
from verisim.reproductions.cxr_comparison import SCALES, data_settings, jobs, judged
from verisim.reproductions.result import Claim, Options, Result
from verisim.reproductions.runs import Job

BASELINES = ("X-G0", "X-V0", "X-A0", "X-D0")
POINTS = {  # name of the point -> recipe, variant of its small scale, overrides, what the source found
    "X-G0 lr=1e-5": ("X-G-lr", "small", "X-G0", "below the baseline"),
    "X-G0 lr=1e-3 nf=128": ("X-G-lr", "small-1e-3", "X-G0", "below the baseline"),
    "X-G0 nf=32": ("X-G-nf", "small", "X-G0", "too simple"),
    "X-G0 nf=128": ("X-G-nf", "small-128", "X-G0", "unstable, with artefacts"),
    "X-V0 lr=1e-5": ("X-V-lr", "small", "X-V0", "indistinguishable from the baseline"),
    "X-V0 lr=1e-6": ("X-V-lr", "small-1e-6", "X-V0", "indistinguishable from the baseline"),
    "X-V0 hidden=300": ("X-V-H", "small", "X-V0", "like the baseline"),
    "X-V0 hidden=500": ("X-V-H", "small-500", "X-V0", "slightly better, unsteady"),
    "X-A0 lr=1e-5": ("X-A-lr", "small", "X-A0", "baseline kept"),
    "X-A0 lr=5e-4": ("X-A-lr", "small-5e-4", "X-A0", "baseline kept"),
    "X-D0 lr=1e-5": ("X-D-lr", "small", "X-D0", "slightly unclear"),
    "X-D0 lr=5e-4": ("X-D-lr", "small-5e-4", "X-D0", "like the baseline"),
}


def run(options: Options) -> Iterator[Result]:
    """Train the baselines and every point of the sweeps once, judge all in one table."""
    full = options.scale == "full"
    scale = replace(SCALES[options.scale].changed_by(options), seeds=1)
    size = scale.sizes[0]
    data = data_settings(options, scale, size)
    baselines = [b for b in BASELINES if not options.systems or b in options.systems]
    wanted = jobs(options.out, data, tuple(baselines), scale)
    common = {k: v for k, v in wanted[0].overrides.items() if k != "data.label"}
    for name, (recipe, variant, baseline, _) in POINTS.items():
        if baseline in baselines:
            chosen = variant.replace("small", "full") if full else variant
            folder = options.out / "runs" / str(size) / name.replace(" ", "_")
            wanted.append(Job(recipe, chosen, folder, dict(common)))
    some = f"-{'+'.join(baselines)}" if options.systems else ""
    found = judged(options, scale, "004-sweeps", wanted, data, some)
    found.claims = _claims(found.numbers[str(size)])
    yield found


def _claims(results: dict) -> list[Claim]:
    """For each point: is it nearer to the real images than its baseline, by FD in random features?

    The judge (C2ST) is right nearly always for literal systems trained for minutes, so it cannot decide.
    """
    rows, found = results["rows"], []
    for name, (_, _, baseline, said) in POINTS.items():
        key = name.replace(" ", "_")
        if key not in rows or f"{baseline}@0" not in rows:
            continue
        a, b = (Estimate.from_dict(rows[k]["fd"]["random"]) for k in (key, f"{baseline}@0"))
        verdict = "ties with" if tie(a, b) else "is better than" if a.value < b.value else "is worse than"
        text = f"FD(random) {a.value:.2f} [{a.low:.2f}, {a.high:.2f}] {verdict} {b.value:.2f} [{b.low:.2f}, {b.high:.2f}]"
        found.append(Claim(name, f"{name}: {said}", "source 004, sweeps", _agrees(said, verdict), text))
    return found


def _agrees(said: str, verdict: str) -> bool | None:
    """Whether the source's words and our verdict point the same way; None where its words do not say."""
    if said.startswith(("indistinguishable", "like")):
        return verdict == "ties with"
    if said.startswith(("below", "too simple", "unstable", "slightly unclear")):
        return verdict == "is worse than"
    return None
