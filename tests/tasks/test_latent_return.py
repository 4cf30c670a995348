"""Does an encoder undo its decoder? Exactly 0 where it does, 1 where it always answers 0."""

import pytest
import torch

from verisim.data.spec import ImageSpec
from verisim.models import build_model
from verisim.reproductions.knee_claims import claims
from verisim.tasks.autoencoding import latent_return


def test_known_encoders(monkeypatch):
    model = build_model("conv_vae", {"latent": 4, "channels": (4, 4)}, ImageSpec((8, 8)))
    monkeypatch.setattr(model, "decode", lambda z: z.view(-1, 1, 2, 2) / 8)  # nothing is beyond the range
    monkeypatch.setattr(model, "encode", lambda x: 8 * x.flatten(1))
    assert latent_return(model, 50).value < 1e-12
    monkeypatch.setattr(model, "encode", lambda x: torch.zeros(len(x), 4))
    found = latent_return(model, 2000)
    assert found.value == pytest.approx(1, abs=4 * found.se) and 0 < found.se < 0.03
    monkeypatch.setattr(model, "encode", lambda x: 9 * x.flatten(1))  # z / 8 too long
    assert latent_return(model, 2000).value == pytest.approx(1 / 64, rel=0.1)


def estimate(value):
    return {"value": value, "low": value - 1e-3, "high": value + 1e-3, "se": 5e-4}


@pytest.mark.parametrize(("mine", "vae", "holds"), [(0.1, 0.4, True), (0.2, 0.4, False), (0.6, 3.0, False)])
def test_claim_on_vpga(mine, vae, holds):
    """Below 0.5 and at most a third of the VAE's."""
    image = {s: estimate(v) for s, v in (("mse_1e-5", 50.0),)}
    numbers = {
        "reconstruction": {n: {"test": image} for n in ("K-S1@0", "K-S5@0")},
        "trivial": {"mean image": image},
        "sampling": {"rows": {}},
        "latent_return": {"K-S1@0": estimate(vae), "K-S5@0": estimate(mine)},
    }
    found = {c.name: c.holds for c in claims(numbers, 64)}
    assert found["returns@64"] is holds and found["vpga-mse@64"] is True
