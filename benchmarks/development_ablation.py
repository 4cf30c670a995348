"""The four combinations of SSL and SGLA on phantoms: `python benchmarks/development_ablation.py [--seeds 1] [--steps 1000]`.

60 subjects of the growing-brain phantom, six of them seen twice, 16 x 16 pixels; 12 new subjects are predicted six
weeks forwards or backwards from one scan (spec 002, section K.10, made smaller). Writes
results/benchmarks/development_ablation.json: PSNR against the second scan with its controls, and the head
circumference of the prediction drawn at 64 x 64 against the phantom's (r, and sigma of the error in mm).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from verisim.models.implicit.development import Architecture, Development
from verisim.models.implicit.fitting import LatentFit, Training, fit, fit_latents
from verisim.phantoms import PHANTOMS, growing_brain
from verisim.tasks.growth import age_change

NAMES = {"none": (False, 0.0), "SGLA": (False, 0.1), "SSL": (True, 0.0), "both": (True, 0.1)}
FITTING = LatentFit(steps=100, lr=1e-2, pixels=0.5)


def measure(ssl: bool, sgla: float, steps: int, seed: int) -> dict[str, float]:
    """Mean PSNR in dB and errors of the head circumference, one training."""
    ages = 26 + 19 * torch.rand(60, generator=torch.Generator().manual_seed(seed + 1))
    ages = torch.cat([ages, torch.where(ages[:6] > 35.5, ages[:6] - 6, ages[:6] + 6)])
    subjects = torch.cat([torch.arange(60), torch.arange(6)])
    scans = growing_brain.scan(subjects, ages, seed, 16).images
    before = torch.linspace(28, 43, 12)
    after = torch.where(before > 35.5, before - 6, before + 6)
    first, second = (growing_brain.scan(torch.arange(200, 212), a, seed, 16) for a in (before, after))

    torch.manual_seed(seed)
    architecture = Architecture(latent=32, hidden=48, layers=4, ssl=ssl)
    model = Development.for_scans(scans, architecture)
    fit(
        model,
        scans,
        ages,
        Training(steps=steps, scans=8, pixels=0.3, mirror=0.0, sgla=sgla, lr=2e-3, latent_lr=1e-2),
        seed=seed,
    )
    c = age_change(model, first.images, before, second.images, after, FITTING, seed=seed)
    latents = fit_latents(model, first.images, before, FITTING, seed=seed)
    drawn = model.render(latents, after, (64, 64)).images
    head = PHANTOMS["growing_brain"].measure(drawn)["head_circumference"]
    truth = second.factors["head_circumference"].double()
    found = {k: float(getattr(c, k).mean()) for k in ("predicted", "unchanged", "copied", "reconstructed")}
    found["head_r"] = float(torch.corrcoef(torch.stack([head, truth]))[0, 1])
    found["head_sigma_mm"] = float((head - truth).std())
    return {k: round(v, 3) for k, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    a = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    rows = {n: [measure(*what, a.steps, s) for s in range(a.seeds)] for n, what in NAMES.items()}
    for name, found in rows.items():
        print(name, *found, sep="\n  ")
    made = {
        "steps": a.steps,
        "seeds": a.seeds,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "processor_seconds": round(time.process_time() - begin, 1),
        "rows": rows,
    }
    path = Path("results/benchmarks/development_ablation.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
