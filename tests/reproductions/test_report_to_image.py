"""Report to image end to end at smoke scale, and its claims say what the numbers say."""

import json

from verisim.cli.main import main
from verisim.metrics.bootstrap import Estimate
from verisim.reproductions.report_claims import claims


def test_smoke(tmp_path):
    """Five models trained for a second, asked, measured: floor, ceiling, controls and figures are all there."""
    assert main(["reproduce", "000-C5", "--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.01"]) == 0
    body = json.loads((tmp_path / "000-C5.smoke.json").read_text())
    numbers = body["numbers"]
    assert {k.split("@")[0] for k in numbers["consistency"]} == {"pixels", "textless", "latent"}
    assert set(numbers["ceiling"]["16"]) == {"heart", "effusion"}
    assert numbers["super_resolution"]["real"]["low_image_error"] == 0
    assert numbers["super_resolution"]["model, consistent"]["low_image_error"] < 1e-5
    assert numbers["inpainting"]["largest_change_of_known"] == 0
    assert (tmp_path / "figures" / "000-C5.smoke" / "pixels@16,guidance=3.png").exists()


def around(value, half=0.02):
    return Estimate(value, value - half, value + half, half / 2).as_dict()


def test_claims_follow_the_numbers():
    """Above, at and below the floor and the target; a control that learned what it cannot know fails."""

    def score(value):
        return {"accuracy": around(value), "chance": 0.33, "asked": 300}

    sr = {"psnr": around(30), "gradient_energy_error": 0.1, "low_image_error": 0.01}
    numbers = {
        "consistency": {
            "pixels": {"heart": score(0.9), "effusion": score(0.5)},
            "latent": {"heart": score(0.34), "effusion": score(0.2)},
            "textless": {"heart": score(0.33), "effusion": score(0.6)},
        },
        "super_resolution": {
            "model": sr,
            "bicubic": {**sr, "psnr": around(32), "gradient_energy_error": 0.4},
            "without the low image": {**sr, "low_image_error": 0.2},
        },
        "autoencoder": around(31.0),
        "inpainting": {"error": 0.1, "error_of_mean_fill": 0.3, "largest_change_of_known": 0.0},
    }
    found = {c.name: c.holds for c in claims(numbers)}
    assert (
        found["heart-asked-pixels"] is found["heart-target-pixels"] is found["effusion-asked-pixels"] is True
    )
    assert found["effusion-target-pixels"] is found["effusion-asked-latent"] is False
    assert found["heart-asked-latent"] is None
    assert found["heart-control-textless"] is True and found["effusion-control-textless"] is False
    assert found["sr-psnr"] is False and found["sr-energy"] is found["sr-control"] is True
    assert found["ae"] is found["fill"] is found["fill-known"] is True
