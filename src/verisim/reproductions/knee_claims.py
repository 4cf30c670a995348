"""What source 001 and its specification claim of Table 6.1, held against our numbers."""

from __future__ import annotations

from typing import Any

from verisim.metrics.bootstrap import Estimate, tie
from verisim.reproductions.result import Claim

FEATURES = "domain"  # the network in which samples are compared


def claims(numbers: dict[str, Any], size: int) -> list[Claim]:
    """All claims whose systems are among the numbers."""
    error = {s: _error(numbers, s) for s in _systems(numbers)}
    distance = {s: _distance(numbers, s) for s in [*error, *(f"{s}:source" for s in error)]}
    found = [_best_reconstruction(error, size), _controls(numbers, error, size)]
    found += [
        _below(error, "K-S4", "K-S2", f"svae@{size}", "The spatial VAE reconstructs better than the VAE with as many latents", "MSE"),
        _below(distance, "K-S8:source", "K-S1:source", f"intro@{size}", "IntroVAE samples better than the VAE, both from N(0, I)", "FD"),
        _below(distance, "K-S5:source", "K-S5-literal:source", f"routing@{size}", "VPGA with the reference's gradient routing samples better than as printed", "FD"),
        _below(distance, "K-X1", "K-X1:source", f"prior@{size}", "The learned prior samples better than uniform codes", "FD"),
        _below(distance, "K-S2", "K-S2:source", f"expost-vae@{size}", "The ex-post density samples better than N(0, I), VAE with many latents", "FD"),
        _below(distance, "K-S4", "K-S4:source", f"expost-svae@{size}", "The ex-post density samples better than N(0, I), spatial VAE", "FD"),
    ]  # fmt: skip
    found += [_returns(numbers, size), _as_good(error, size)]
    return [c for c in found if c is not None]


def _returns(numbers: dict[str, Any], size: int) -> Claim | None:
    """VPGA: the encoder finds drawn latents again, three times as exactly as a VAE's."""
    rows = numbers.get("latent_return", {})
    mine, vae = (
        mean_over_seeds([r for n, r in rows.items() if n.split("@")[0] == s]) for s in ("K-S5", "K-S1")
    )
    if mine is None or vae is None:
        return None
    return Claim(
        f"returns@{size}",
        "VPGA's encoder finds latents drawn from N(0, I) again: error below 0.5, at most a third of the VAE's",
        "spec 001, section 6, S5",
        mine.value < 0.5 and 3 * mine.value <= vae.value,
        f"per latent: {as_text('K-S5', mine)}, {as_text('K-S1', vae)}",
    )


def _as_good(error: dict[str, Estimate | None], size: int) -> Claim | None:
    """VPGA's reconstructions beside the VAE's."""
    mine, vae = error.get("K-S5"), error.get("K-S1")
    if mine is None or vae is None:
        return None
    return Claim(
        f"vpga-mse@{size}",
        "VPGA's reconstruction error is at most 1.3 times the VAE's",
        "spec 001, section 6, S5",
        mine.value <= 1.3 * vae.value,
        f"MSE x 1e5: {as_text('K-S5', mine)}, {as_text('K-S1', vae)}",
    )


def _systems(numbers: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(n.split("@")[0] for n in numbers["reconstruction"]))


def mean_over_seeds(parts: list[dict[str, float]]) -> Estimate | None:
    """Mean over seeds; the interval is the mean interval (seeds share their images)."""
    if not parts:
        return None
    each = [Estimate.from_dict(p) for p in parts]
    n = len(each)
    return Estimate(*(sum(getattr(e, f) for e in each) / n for f in ("value", "low", "high", "se")))


def _error(numbers: dict[str, Any], system: str) -> Estimate | None:
    rows = numbers["reconstruction"]
    return mean_over_seeds([r["test"]["mse_1e-5"] for n, r in rows.items() if n.split("@")[0] == system])


def _distance(numbers: dict[str, Any], system: str) -> Estimate | None:
    rows = numbers["sampling"]["rows"]
    mine = [r["fd"].get(FEATURES, {}) for n, r in rows.items() if n.split("@")[0] == system]
    return mean_over_seeds([m for m in mine if m.get("value") is not None])


def as_text(name: str, e: Estimate) -> str:
    """'K-S1 54 [51, 57]'."""
    return f"{name} {e.value:.4g} [{e.low:.4g}, {e.high:.4g}]"


def _below(
    values: dict[str, Estimate | None], a: str, b: str, name: str, statement: str, measure: str
) -> Claim | None:
    """Is a's value below b's? None where the two tie."""
    x, y = values.get(a), values.get(b)
    if x is None or y is None:
        return None
    holds = None if tie(x, y) else x.value < y.value
    evidence = f"{measure}: {as_text(a, x)}, {as_text(b, y)}"
    return Claim(name, statement, "source 001, Table 6.1; spec 001, section 10", holds, evidence)


def _best_reconstruction(error: dict[str, Estimate | None], size: int) -> Claim | None:
    """VQ-VAE_adpt before all continuous models."""
    best = error.get("K-S7")
    others = {s: e for s, e in error.items() if s not in ("K-S7", "K-X1") and e is not None}
    if best is None or not others:
        return None
    nearest = min(others, key=lambda s: others[s].value)
    rival = others[nearest]
    holds = None if tie(best, rival) else best.value < rival.value
    text = f"MSE x 1e5: {as_text('K-S7', best)}, next {as_text(nearest, rival)}"
    return Claim(
        f"vq@{size}",
        "VQ-VAE_adpt reconstructs better than all others",
        "source 001, Table 6.1",
        holds,
        text,
    )


def _controls(numbers: dict[str, Any], error: dict[str, Estimate | None], size: int) -> Claim:
    """Mean image and shuffled pixels must lose against every model."""
    trivial = {n: Estimate.from_dict(r["mse_1e-5"]) for n, r in numbers["trivial"].items()}
    floor = min(trivial.values(), key=lambda e: e.value)
    worst = max((s for s, e in error.items() if e is not None), key=lambda s: error[s].value)  # type: ignore[union-attr]
    rival = error[worst]
    assert rival is not None
    text = ", ".join(as_text(n, e) for n, e in trivial.items()) + f"; worst model {as_text(worst, rival)}"
    return Claim(
        f"controls@{size}",
        "Every model reconstructs better than the mean image and than shuffled pixels",
        "spec 001, section 10 E",
        rival.value < floor.value,
        f"MSE x 1e5: {text}",
    )
