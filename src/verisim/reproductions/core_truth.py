"""The diffusion core on data whose best denoiser is known: every error is the core's own. Source 003, section 0.4.

Samplers by steps and dimensions, likelihoods against closed forms, guidance at its fixed points; and, as controls,
equations as the literature prints them, which must miss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from verisim.diffusion.guidance import classifier_free
from verisim.diffusion.likelihood import BIN, quantise, variational_bound
from verisim.diffusion.ode_likelihood import ode_log_prob
from verisim.diffusion.oracles import Mixture, gaussian
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import make_sigmas, vp_linear_table, vp_scaled_linear_table
from verisim.reproductions.result import Claim

MIXTURE = Mixture((-0.6, 0.1, 0.7), (0.05, 0.1, 0.05), (0.3, 0.5, 0.2))
DATA = {"Gaussian": gaussian(0.3, 0.2), "mixture": MIXTURE}
SHAPES = {"1D": (1,), "2D": (1, 8, 8), "3D": (1, 4, 4, 4)}  # of one image; values are independent
FEW, MANY = 20, 1000  # network evaluations
MARGIN = 0.2  # relative error of the standard deviation at which a sampler has failed
LONG = 250  # evaluations from which on that is asked
SOURCE = "spec 003, section 0.4"


def measure_truth(values: int, steps: tuple[int, ...], starts: int) -> dict[str, Any]:
    """Everything of this file, as JSON values; values: sampled per cell."""
    return {
        "samplers": sampler_cells(values, steps),
        "few": few_against_many(values, starts),
        "constants": constants(),
        "likelihood": likelihoods(),
        "guidance": guided(values),
        "misprints": {name: _reached(step) for name, step in MISPRINTS.items()},
    }


# --- samplers -------------------------------------------------------------------------------------


def sampler_cells(values: int, steps: tuple[int, ...]) -> dict[str, Any]:
    """W2 and standard deviation of every sampler on its own grid and on vp_linear, by data, dimensions, evaluations."""
    rows: dict[str, Any] = {}
    for title, data in DATA.items():
        for name, method in SAMPLERS.items():
            for schedule in dict.fromkeys((method.schedule, "vp_linear")):
                for dims, shape in SHAPES.items():
                    key = f"{title}, {name} ({schedule}), {dims}"
                    rows[key] = {str(n): _cell(data, name, schedule, shape, n, values) for n in steps}
    return rows


def _cell(
    data: Mixture, name: str, schedule: str, shape: tuple[int, ...], budget: int, values: int
) -> dict[str, Any]:
    x = draw(data, name, schedule, shape, budget, values)
    if not torch.isfinite(x).all():
        return {"w2": None, "std": None, "failed": "not finite"}
    std = float(x.double().std())
    wrong = budget >= LONG and abs(std / data.std - 1) > MARGIN
    failed = f"std {std:.3f} instead of {data.std:.3f}" if wrong else ""
    return {"w2": float(f"{data.wasserstein(x):.4g}"), "std": float(f"{std:.4g}"), "failed": failed}


def draw(
    data: Mixture,
    name: str,
    schedule: str,
    shape: tuple[int, ...],
    budget: int,
    values: int,
    start: int = 0,
) -> Tensor:
    """(N, *shape) with about `values` values in all, from at most `budget` evaluations (a sampler takes at least one step)."""
    method = SAMPLERS[name]
    n = budget if method.evaluations(2) == 2 else (budget + 1) // 2  # Heun asks twice a step
    sigmas = make_sigmas(schedule, n, data.std)
    count = max(1, values // math.prod(shape))
    order = torch.randperm(count * math.prod(shape), generator=torch.Generator().manual_seed(start))
    z = gaussian(0.0, 1.0).quantiles(len(order))[order].float().view(count, *shape)
    run = partial(method.run, sigma_data=data.std) if name == "flow_heun" else method.run
    return run(data.denoise, float(sigmas[0]) * z, sigmas, generator=torch.Generator().manual_seed(start + 1))


def few_against_many(values: int, starts: int) -> dict[str, Any]:
    """W2 at FEW evaluations of every sampler beside that of MANY ancestral steps, over several starts."""
    found: dict[str, Any] = {}
    for title, data in DATA.items():
        cells = {"ddpm": (MANY, "vp_linear")} | {
            name: (FEW, m.schedule) for name, m in SAMPLERS.items() if name != "ddpm"
        }
        found[title] = {
            name: [data.wasserstein(draw(data, name, s, (1,), n, values, 10 * k)) for k in range(starts)]
            for name, (n, s) in cells.items()
        }
    return found


# --- constants, likelihoods, guidance ---------------------------------------------------------------


def constants() -> dict[str, float]:
    """alpha_bar after 1000 steps of two schedules, and L_T: nats per value by which x_T of an extreme image differs from noise."""
    found = {}
    for name, table in (("linear", vp_linear_table()), ("scaled_linear", vp_scaled_linear_table())):
        found[name] = float(1 / (1 + table[-1] ** 2))
    a = found["linear"]
    found["L_T"] = 0.5 * (a * 1.0**2 + (1 - a) - 1 - math.log(1 - a))  # x0 = 1 or -1
    return found


def likelihoods() -> dict[str, dict[str, float]]:
    """Largest error of the exact likelihood in nats per value, gap of the bound in bits; each beside that of other data."""
    low, x = 0.02, 0.4 * torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    x = x.clamp(-0.6, 0.6)
    data, other = Mixture((-0.45, 0.3), (0.2, 0.15), (0.4, 0.6)), gaussian(0.3, 0.3)
    got = ode_log_prob(data.denoise, x, sigma_data=data.std, sigma_min=low, sigma_max=40.0, steps=400)
    ode = {name: float((got - _density(d, x, low)).abs().max()) / 4 for name, d in (("own", data), ("other", other))}  # fmt: skip
    data = MIXTURE
    n = 8 * 32 * 32
    y = data.quantiles(n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    y = quantise(y.view(8, 1, 32, 32)).float()
    truth = -(data.cdf(y + BIN / 2) - data.cdf(y - BIN / 2)).log2().mean()
    bound = {}
    for name, d in (("own", data), ("other", gaussian(data.mean, data.std))):
        g = torch.Generator().manual_seed(1)
        total = variational_bound(d.denoise, y, sigma_data=data.std, draws=32, generator=g).total
        bound[name] = float(total.mean() - truth)
    return {"ode": ode, "bound": bound}


def _density(data: Mixture, x: Tensor, extra: float) -> Tensor:
    """log density of data + extra eps, (B,)."""
    logs = [
        math.log(w) - 0.5 * ((x - m) ** 2 / (s * s + extra**2) + math.log(2 * math.pi * (s * s + extra**2)))
        for m, s, w in zip(data.means, data.stds, data.weights)
    ]
    return torch.logsumexp(torch.stack(logs), 0).flatten(1).sum(1)


def guided(values: int) -> dict[str, float]:
    """W2 of samples at guidance 0 to all data, at 1 to the class; at 0 to the class as control."""
    classes = [gaussian(-0.5, 0.1), gaussian(0.5, 0.1)]
    both = Mixture((-0.5, 0.5), (0.1, 0.1), (0.5, 0.5))

    def denoise(x: Tensor, sigma: Tensor, label: Any) -> Tensor:
        answers = torch.stack([d.denoise(x, sigma) for d in (*classes, both)])
        return answers[label, torch.arange(len(x))]

    def sampled(scale: float) -> Tensor:
        guide, label = classifier_free(denoise, scale, 2), torch.ones(values, dtype=torch.long)
        sigmas = make_sigmas("flow", 50, both.std)
        z = gaussian(0.0, 1.0).quantiles(values).float()[:, None]
        return SAMPLERS["dpmpp_2m"].run(lambda x, s: guide(x, s, label), float(sigmas[0]) * z, sigmas)

    plain, own = sampled(0.0), sampled(1.0)
    return {
        "scale 1 to the class": classes[1].wasserstein(own),
        "scale 0 to all data": both.wasserstein(plain),
        "scale 0 to the class": classes[1].wasserstein(plain),
    }


# --- equations as printed ---------------------------------------------------------------------------

TABLE = vp_linear_table()
A = [1.0, *(1 / (1 + TABLE**2)).tolist()]  # alpha_bar_0...T
BETA = [0.0, *(1 - A[t] / A[t - 1] for t in range(1, len(A)))]
Step = Callable[[int], tuple[float, float, float]]  # t -> x_{t-1} = p x_t + q eps + noise of this variance


def _reached(step: Step) -> dict[str, float | None]:
    """Exact mean and standard deviation that a reverse chain reaches from noise, for data N(0.3, 0.2^2)."""
    mean, deviation = DATA["Gaussian"].mean, DATA["Gaussian"].std
    m, var = 0.0, 1.0
    for t in range(len(A) - 1, 0, -1):
        p, q, noise = step(t)
        k = math.sqrt(1 - A[t]) / (A[t] * deviation**2 + 1 - A[t])  # the best eps is k (x_t - sqrt(a_t) mean)
        m = p * m + q * k * (m - math.sqrt(A[t]) * mean)
        var = (p + q * k) ** 2 * var + (noise if t > 1 else 0.0)
        if not var < 1e30:
            return {"mean": None, "std": None}  # diverged
    return {"mean": m, "std": math.sqrt(var)}


def _reverse(prefactor: Callable[[int], float], variance: Callable[[int], float]) -> Step:
    """x_{t-1} = prefactor (x_t - beta_t / sqrt(1 - a_t) eps) + noise."""

    def step(t: int) -> tuple[float, float, float]:
        f = prefactor(t)
        return f, -f * BETA[t] / math.sqrt(1 - A[t]), variance(t)

    return step


def _posterior(second: Callable[[int], float]) -> Step:
    """The posterior mean with `second` under the root of its second coefficient."""

    def step(t: int) -> tuple[float, float, float]:
        w0 = math.sqrt(A[t - 1]) * BETA[t] / (1 - A[t])
        wt = math.sqrt(second(t)) * (1 - A[t - 1]) / (1 - A[t])
        return wt + w0 / math.sqrt(A[t]), -w0 * math.sqrt(1 - A[t]) / math.sqrt(A[t]), _tilde(t)

    return step


def _ddim(noise: Callable[[int], float]) -> Step:
    """x_{t-1} = sqrt(a_{t-1}) x0 + noise(t) eps."""

    def step(t: int) -> tuple[float, float, float]:
        p = math.sqrt(A[t - 1] / A[t])
        return p, noise(t) - p * math.sqrt(1 - A[t]), 0.0

    return step


def _tilde(t: int) -> float:
    return (1 - A[t - 1]) / (1 - A[t]) * BETA[t]


def _alpha(t: int) -> float:
    return 1 - BETA[t]


MISPRINTS: dict[str, Step] = {
    "reverse mean": _reverse(lambda t: _alpha(t) ** -0.5, lambda t: BETA[t]),
    "reverse mean as printed (003, eq. 16.4)": _reverse(lambda t: A[t] ** -0.5, lambda t: BETA[t]),
    "posterior mean": _posterior(_alpha),
    "posterior mean as printed (003, eq. 2.13)": _posterior(lambda t: A[t]),
    "DDIM": _ddim(lambda t: math.sqrt(1 - A[t - 1])),
    "DDIM as printed (000, eq. 2.16)": _ddim(lambda t: math.sqrt(A[t - 1])),
    "reverse variance": _reverse(lambda t: _alpha(t) ** -0.5, _tilde),
    "reverse variance as printed (000)": _reverse(
        lambda t: _alpha(t) ** -0.5, lambda t: (1 - A[t - 1]) / (1 - A[t])
    ),
}


# --- claims -----------------------------------------------------------------------------------------


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """What has to be true of the core."""
    cells = [(key, n, c) for key, row in numbers["samplers"].items() for n, c in row.items()]
    failed = [f"{key}, {n} evaluations: {c['failed']}" for key, n, c in cells if c["failed"]]
    found = [
        Claim(
            "samplers",
            f"No sampler fails: finite everywhere, spread within {MARGIN:.0%} from {LONG} evaluations on",
            SOURCE,
            not failed,
            f"{len(cells)} cells, {len(failed)} failed" + (f": {failed[0]}" if failed else ""),
        )
    ]
    for title, rows in numbers["few"].items():
        many = torch.tensor(rows["ddpm"])
        se = float(many.std() / math.sqrt(len(many)))
        best = min((k for k in rows if k != "ddpm"), key=lambda k: sum(rows[k]))
        value = sum(rows[best]) / len(rows[best])
        text = f"W2 {value:.4f} ({best}, {FEW}) against {float(many.mean()):.4f} (ancestral, {MANY}), standard error {se:.4f}"
        statement = f"{FEW} evaluations are as good as {MANY} ancestral steps, {title}"
        found.append(Claim(f"few-{title}", statement, "ours", value <= float(many.mean()) + se, text))
    c = numbers["constants"]
    right = abs(c["linear"] / 4.036e-5 - 1) < 1e-3 and abs(c["scaled_linear"] / 1.423e-4 - 1) < 1e-3
    text = f"alpha_bar_T {c['linear']:.4g} and {c['scaled_linear']:.4g}; L_T {c['L_T']:.2g} nats per value"
    statement = "Published constants of the schedules: 4.036e-5, 1.423e-4, L_T below 1e-3 nats per value"
    found.append(Claim("constants", statement, SOURCE, right and c["L_T"] < 1e-3, text))
    ode, bound = numbers["likelihood"]["ode"], numbers["likelihood"]["bound"]
    text = f"{ode['own']:.2g} nats per value; held against other data {ode['other']:.2g}"
    statement = "The likelihood by the probability-flow ODE is that of the data within 0.002 nats per value"
    holds = ode["own"] < 0.002 < 0.02 < ode["other"]
    found.append(Claim("likelihood", statement, "Song 2021", holds, text))
    text = f"{bound['own']:.3f} bits per dimension above the truth; with a denoiser of other data {bound['other']:.3f}"
    statement = "The variational bound lies above the truth, by less than 0.03 bits per dimension"
    holds = -0.01 < bound["own"] < 0.03 < bound["other"]
    found.append(Claim("bound", statement, "Kingma 2021", holds, text))
    g = numbers["guidance"]
    text = ", ".join(f"{k}: W2 {v:.4f}" for k, v in g.items())
    holds = g["scale 1 to the class"] < 0.02 and g["scale 0 to all data"] < 0.02 < g["scale 0 to the class"]
    found.append(
        Claim(
            "guidance",
            "Guidance 1 samples the class, 0 all data",
            "003, eq. 2.24 corrected",
            holds,
            text,
        )
    )
    return [*found, *_misprints(numbers["misprints"])]


def _misprints(reached: dict[str, Any]) -> list[Claim]:
    """The corrected equations reach the data, the printed ones do not."""

    def good(r: dict[str, Any]) -> bool:
        return r["std"] is not None and abs(r["mean"] - 0.3) < 0.006 and abs(r["std"] - 0.2) < 0.004

    found = []
    for printed in [k for k in reached if "printed" in k]:
        name = printed.partition(" as printed")[0]
        words = [
            f"{k}: " + ("diverges" if r["std"] is None else f"mean {r['mean']:.3g}, std {r['std']:.3g}")
            for k, r in ((name, reached[name]), ("as printed", reached[printed]))
        ]
        holds = good(reached[name]) and not good(reached[printed])
        statement = (
            f"{name}: corrected it reaches the data (mean 0.3, std 0.2) within 2 %, as printed it does not"
        )
        found.append(Claim(f"misprint-{name.replace(' ', '-')}", statement, printed.partition("printed ")[2].strip("()"), holds, "; ".join(words)))  # fmt: skip
    return found
