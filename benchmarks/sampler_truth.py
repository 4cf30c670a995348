"""Samplers against the truth: verisim, MONAI and diffusers on data whose optimal denoiser is known.

    python benchmarks/sampler_truth.py            # needs: pip install -e ".[bench]"

Every sampler gets the exact denoiser of N(0.3, 0.2^2) and of a three-mode mixture, so that all error is
the sampler's own. Starts are the same for all (a shuffled grid of normal quantiles). The number is the
W2 distance to the data, at equal numbers of network evaluations; second-order samplers therefore take
half as many steps. Our own schedules are given the data's standard deviation, as a model is (two rows
show a wrong one); the vp_linear rows are not. Peers run with their defaults unless named. A cell fails if it crashes, is not finite, or misses the standard deviation by more
than 20 % with 250 evaluations or more. Writes results/benchmarks/sampler_truth.json.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from verisim.diffusion.oracles import Mixture, gaussian
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import make_sigmas
from verisim.errors import VerisimError

BUDGETS = (1, 5, 10, 20, 50, 100, 250, 1000)  # network evaluations
VALUES = 1 << 13  # values sampled per cell
DATA = {
    "Gaussian": gaussian(0.3, 0.2),
    "mixture": Mixture((-0.6, 0.1, 0.7), (0.05, 0.1, 0.05), (0.3, 0.5, 0.2)),
}
OUT = Path(__file__).parents[1] / "results" / "benchmarks" / "sampler_truth.json"
Run = Callable[[Mixture, int, Tensor], Tensor]  # (data, evaluations, normal start (N, 1)) -> samples


# --- ours -----------------------------------------------------------------------------------------


def ours(
    name: str, schedule: str, data: Mixture, budget: int, noise: Tensor, sigma_data: float | None = None
) -> Tensor:
    method = SAMPLERS[name]
    scale = data.std if sigma_data is None else sigma_data
    steps = budget if method.evaluations(2) == 2 else (budget + 1) // 2
    sigmas = make_sigmas(schedule, steps, scale)
    run = partial(method.run, sigma_data=scale) if name == "flow_heun" else method.run
    generator = torch.Generator().manual_seed(1)
    return run(data.denoise, float(sigmas[0]) * noise, sigmas, generator=generator)


# --- peers: they see the same denoiser as a network that predicts eps (or a velocity) --------------


class Epsilon:
    """eps(x_VP, t) of a variance-preserving chain, t = 0...T - 1 (fractional t interpolates)."""

    def __init__(self, data: Mixture, alpha_bar: Tensor) -> None:
        self.data = data
        self.log_sigma = 0.5 * ((1 - alpha_bar.double()) / alpha_bar.double()).log()

    def sigma(self, t: float) -> float:
        i = min(max(int(t), 0), len(self.log_sigma) - 2)
        a, b = self.log_sigma[i], self.log_sigma[i + 1]
        return float((a + (b - a) * (float(t) - i)).exp())

    def __call__(self, x: Tensor, t: float) -> Tensor:
        sigma = self.sigma(float(t))
        x = x * (1 + sigma**2) ** 0.5  # to x0 + sigma eps
        return (x - self.data.denoise(x, torch.full((len(x),), sigma))) / sigma


def monai_vp(kind: str, data: Mixture, budget: int, noise: Tensor) -> Tensor:
    from monai.networks import schedulers

    settings = {"clip_sample": False} if kind != "PNDMScheduler" else {"skip_prk_steps": True}
    scheduler = getattr(schedulers, kind)(num_train_timesteps=1000, **(_monai_betas() | settings))
    scheduler.set_timesteps(budget)
    eps = Epsilon(data, scheduler.alphas_cumprod)
    torch.manual_seed(1)
    x = noise
    for t in scheduler.timesteps:
        x, _ = scheduler.step(eps(x, int(t)), int(t), x)
    return x


def _monai_betas() -> dict[str, Any]:
    return {"schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 0.02}


def monai_flow(data: Mixture, budget: int, noise: Tensor) -> Tensor:
    from monai.networks.schedulers import RFlowScheduler

    scheduler = RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=True)
    scheduler.set_timesteps(budget)
    times = [int(t) for t in scheduler.timesteps]
    x = noise
    for t, following in zip(times, [*times[1:], 0]):
        u = min(t / 1000, 1 - 1e-6)  # share of noise: x = (1 - u) x0 + u eps
        x0 = data.denoise(x / (1 - u), torch.full((len(x),), u / (1 - u)))
        x, _ = scheduler.step((x0 - x) / u, t, x, following)  # MONAI's velocity is x0 - eps
    return x


def diffusers_vp(kind: str, settings: dict[str, Any], data: Mixture, budget: int, noise: Tensor) -> Tensor:
    import diffusers

    betas = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    scheduler = getattr(diffusers, kind)(num_train_timesteps=1000, **betas, **settings)
    scheduler.set_timesteps((budget + 1) // 2 if kind.startswith("Heun") else budget)
    eps = Epsilon(data, scheduler.alphas_cumprod)
    generator = torch.Generator().manual_seed(1)
    x = noise * scheduler.init_noise_sigma
    extra = {"generator": generator} if kind in ("DDPMScheduler", "DDIMScheduler") else {}
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t)
        x = scheduler.step(eps(x_in, float(t)).to(x.dtype), t, x, **extra).prev_sample
    return x


def competitors() -> dict[str, Run]:
    """All rows by name; VerisimError if a peer is not installed."""
    try:
        import diffusers  # noqa: F401
        import monai  # noqa: F401
    except ImportError as e:
        raise VerisimError(
            f"This benchmark compares with MONAI and diffusers, and '{e.name}' is not installed. "
            f"Run: pip install -e '.[bench]'"
        ) from e
    rows: dict[str, Run] = {}
    for name, method in SAMPLERS.items():
        if name != "ddim":  # with eta 0 it is euler
            rows[f"verisim {name} ({method.schedule})"] = partial(ours, name, method.schedule)
            rows[f"verisim {name} (vp_linear)"] = partial(ours, name, "vp_linear")
    rows["verisim heun (karras, as EDM)"] = partial(ours, "heun", "karras")
    for scale in (0.1, 1.0):  # what a wrong guess of the data's scale costs
        rows[f"verisim dpmpp_2m (flow, std {scale:g})"] = partial(ours, "dpmpp_2m", "flow", sigma_data=scale)
    for kind in ("DDPM", "DDIM", "PNDM"):
        rows[f"MONAI {kind}"] = partial(monai_vp, f"{kind}Scheduler")
    rows["MONAI RFlow"] = monai_flow
    karras = {"use_karras_sigmas": True}
    no_clip = {"clip_sample": False}
    trailing = {"timestep_spacing": "trailing"}
    for label, kind, settings in (
        ("DDPM", "DDPMScheduler", no_clip),
        ("DDIM", "DDIMScheduler", no_clip),
        ("DDIM trailing", "DDIMScheduler", no_clip | trailing),
        ("DPM++2M", "DPMSolverMultistepScheduler", {}),
        ("DPM++2M Karras", "DPMSolverMultistepScheduler", karras),
        ("UniPC", "UniPCMultistepScheduler", {}),
        ("UniPC Karras", "UniPCMultistepScheduler", karras),
        ("PNDM", "PNDMScheduler", {"skip_prk_steps": True}),
        ("Euler", "EulerDiscreteScheduler", {}),
        ("Euler Karras", "EulerDiscreteScheduler", karras),
        ("Heun", "HeunDiscreteScheduler", {}),
        ("Heun Karras", "HeunDiscreteScheduler", karras),
    ):
        rows[f"diffusers {label}"] = partial(diffusers_vp, kind, settings)
    return rows


# --- measuring ------------------------------------------------------------------------------------


def measure(run: Run, data: Mixture, budget: int, noise: Tensor) -> dict[str, Any]:
    """One cell: W2, mean, std, and why it failed if it did."""
    try:
        x = run(data, budget, noise)
    except VerisimError:
        raise
    except Exception as e:  # a peer's crash is a result
        return {"w2": None, "failed": f"{type(e).__name__}: {e}"[:120]}
    if not torch.isfinite(x).all():
        return {"w2": None, "failed": "not finite"}
    mean, std = float(x.double().mean()), float(x.double().std())
    wrong = budget >= 250 and abs(std / data.std - 1) > 0.2
    failed = f"std {std:.3f} instead of {data.std:.3f}" if wrong else None
    w2, mean, std = (float(f"{v:.4g}") for v in (data.wasserstein(x), mean, std))
    return {"w2": w2, "mean": mean, "std": std, "failed": failed}


def show(console: Console, title: str, cells: dict[str, dict[str, dict[str, Any]]]) -> None:
    table = Table(title=f"W2 distance to the {title} by network evaluations (bold: best; !: failed)")
    table.add_column("sampler")
    best = {}
    for budget in BUDGETS:
        table.add_column(str(budget), justify="right")
        good = [row[str(budget)]["w2"] for row in cells.values() if not row[str(budget)]["failed"]]
        best[budget] = min(good)
    for name, row in cells.items():
        texts = []
        for budget in BUDGETS:
            cell = row[str(budget)]
            text = "nan" if cell["w2"] is None else f"{cell['w2']:.4f}"
            mark = "[red]{}![/red]" if cell["failed"] else "{}"
            texts.append(f"[bold]{text}[/bold]" if cell["w2"] == best[budget] else mark.format(text))
        table.add_row(name, *texts)
    console.print(table)


def lost(cells: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Columns in which a peer's best W2 is below our best."""
    lines = []
    for budget in map(str, BUDGETS):
        good = {name: row[budget]["w2"] for name, row in cells.items() if not row[budget]["failed"]}
        mine = min((w, n) for n, w in good.items() if n.startswith("verisim"))
        theirs = min((w, n) for n, w in good.items() if not n.startswith("verisim"))
        if theirs[0] < mine[0]:
            lines.append(f"{budget} evaluations: {theirs[1]} {theirs[0]:.4f} < {mine[1]} {mine[0]:.4f}")
    return lines


def main() -> None:
    torch.set_num_threads(1)
    console = Console(width=150)
    start = time.process_time()
    order = torch.randperm(VALUES, generator=torch.Generator().manual_seed(0))
    noise = gaussian(0.0, 1.0).quantiles(VALUES)[order].float()[:, None]  # (N, 1)
    rows = competitors()
    results: dict[str, Any] = {}
    for title, data in DATA.items():
        cells = {
            name: {str(budget): measure(run, data, budget, noise) for budget in BUDGETS}
            for name, run in rows.items()
        }
        results[title] = {"cells": cells, "lost": lost(cells)}
        show(console, title, cells)
        console.print("Columns we lose:", results[title]["lost"] or "none")
    failed = {
        who: sum(
            bool(cell["failed"])
            for part in results.values()
            for name, row in part["cells"].items()
            if name.startswith(who)
            for cell in row.values()
        )
        for who in ("verisim", "MONAI", "diffusers")
    }
    seconds = time.process_time() - start
    console.print(f"Failed cells: {failed}. {seconds:.0f} CPU seconds, one thread.")
    report = {
        "what": "W2 distance to data with known denoiser, by sampler and network evaluations",
        "note": "schedules other than vp_linear know the data's standard deviation; peers run on defaults",
        "values": VALUES,
        "versions": {p: version(p) for p in ("verisim", "torch", "monai", "diffusers")},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "cpu_seconds": round(seconds, 1),
        "failed": failed,
        "results": results,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(report, indent=None).replace('}, "', '},\n"') + "\n")
    console.print(f"Wrote {OUT.relative_to(Path.cwd()) if OUT.is_relative_to(Path.cwd()) else OUT}")


if __name__ == "__main__":
    main()
