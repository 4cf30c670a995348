"""A small made-up evaluation in the form that evaluate_fair returns."""

import torch

from verisim.data.spec import Images, ImageSpec

SPACES = ("image", "domain")


def estimate(value, half=0.02):
    return {"value": value, "low": value - half, "high": value + half, "se": half / 1.96}


def missing(reason):
    return {"value": None, "reason": reason}


def row(kind, auc, *, n=40, copies=False, mirrored=False, few=""):
    """One row; `few` is the reason why nothing could be measured."""
    memory = {
        "fake_median": 0.05 if copies else 0.2, "test_median": 0.2, "threshold": 0.1, "flag": copies,
        "share_below": 0.9 if copies else 0.04, "share_low": 0.01, "share_high": 0.95,
        "nearest": [{"fake": 3, "train": 1, "distance": 0.01}, {"fake": 0, "train": 2, "distance": 0.02}],
    }  # fmt: skip
    side = {"score_ratio": 0.0 if mirrored else 0.98, "flag": mirrored}
    four = {m: estimate(0.9) for m in ("precision", "recall", "density", "coverage")}
    return {
        "kind": kind,
        "n": n,
        "n_distribution": n,
        "c2st": missing(few) if few else {"auc": estimate(auc), "accuracy": estimate(auc), "seeds": 3},
        "fd": {"domain": missing(few) if few else estimate(10 * auc)},
        "kid": {"domain": missing(few) if few else estimate(auc / 10)},
        "prdc": {"domain": missing(few) if few else four},
        "diversity": {s: missing(few) if few else estimate(1.0) for s in SPACES},
        "memorisation": {s: memory for s in SPACES},
        "laterality": missing(few) if few else side,
    }


def results(generators):
    """generators: name@seed -> row."""
    aucs = {"real": 0.5, "copies": 0.5, "blurred": 0.97, "marginal": 1.0, "noise": 1.0}
    names = list(generators)
    return {
        "schema": "verisim.fair/1",
        "settings": {"n_seeds": 3, "networks": ["domain"]},
        "data": {"size": [16, 16], "n_train": 30, "n_test": 20, "patients_test": 18},
        "networks": [
            {"name": "domain", "label": "FD(domain)", "dim": 64, "sha256": "abc", "preprocessing": "none"}
        ],
        "rows": generators,
        "controls": {n: row("control", a) for n, a in aucs.items()},
        "cross": {"judges": names, "samples": names, "auc": [[0.5] * len(names)] * len(names)},
        "warnings": [f"{n}: 40 samples are few." for n in names],
        "seconds": 12.0,
        "environment": {"verisim": "test", "gpu": None},
    }


def images(n, seed, value=None):
    spec = ImageSpec((16, 16))
    if value is not None:
        return Images(torch.full((n, 1, 16, 16), value), spec)
    return Images(torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1, spec)
