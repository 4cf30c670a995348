"""Anomaly maps find what was added, p-values keep their promise, and a blind detector finds nothing."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from verisim.cli.main import main
from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.roles import AnomalyDetector
from verisim.tasks.anomaly import Calibration, ReconstructionDetector, auroc, calibrate, detector_of, scores


class Mean:
    """An autoencoder that knows one image: the mean of the normal ones."""

    def __init__(self, mean):
        self.mean = mean

    def encode(self, x):
        return torch.zeros(len(x), 1)

    def decode(self, z):
        return self.mean.expand(len(z), *self.mean.shape)


def normal_images(n, seed):
    x = 0.1 * torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Images(x.clamp(-1, 1), ImageSpec((16, 16)))


def with_spot(images):
    x = images.pixels.clone()
    x[:, :, 4:8, 10:14] += 0.8
    return Images(x.clamp(-1, 1), images.spec)


def test_map_is_largest_where_something_was_added():
    """The spot's own pixels are the top of the map, in 2D and in 3D."""
    detector = ReconstructionDetector(Mean(torch.zeros(1, 16, 16)))
    assert isinstance(detector, AnomalyDetector)
    found = detector.anomaly_map(with_spot(normal_images(3, 0)).pixels)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:8, 10:14] = True
    assert float(found[:, 0][:, inside].mean()) > 4 * float(found[:, 0][:, ~inside].mean())
    volume = torch.zeros(1, 1, 8, 8, 8)
    volume[..., 2, 3, 4] = 1
    place = ReconstructionDetector(Mean(torch.zeros(1, 8, 8, 8))).anomaly_map(volume).flatten().argmax()
    assert np.unravel_index(int(place), (8, 8, 8)) == (2, 3, 4)


def test_p_values_keep_their_promise():
    """Among new normal images a share of at most about a has p <= a; images with a spot have the smallest p."""
    detector = ReconstructionDetector(Mean(torch.zeros(1, 16, 16)))
    known = calibrate(detector, normal_images(199, 1))
    fresh = known.p_values(scores(detector.anomaly_map(normal_images(2000, 2).pixels)))
    for a in (0.05, 0.2, 0.5):
        assert abs(float((fresh <= a).double().mean()) - a) < 0.06
    spots = known.p_values(scores(detector.anomaly_map(with_spot(normal_images(50, 3)).pixels)))
    assert float(spots.max()) == pytest.approx(1 / 200)


def test_p_values_in_closed_form():
    """(1 + number of normal scores at or above) / (n + 1)."""
    known = Calibration(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 0.1, 0.05)
    assert known.p_values(torch.tensor([0.0, 2.0, 2.5, 9.0])).tolist() == [1.0, 0.75, 0.5, 0.25]


def test_pixel_threshold_is_the_quantile():
    """A share `rate` of the normal pixels lies above it."""
    detector, images = ReconstructionDetector(Mean(torch.zeros(1, 16, 16))), normal_images(100, 4)
    known = calibrate(detector, images, rate=0.1)
    share = float((detector.anomaly_map(images.pixels) > known.pixel).double().mean())
    assert share == pytest.approx(0.1, abs=0.01)


def test_blind_detector_is_at_chance():
    """Negative control: a detector that does not look has an AUROC of one half."""
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(300, generator=rng), torch.rand(300, generator=rng)
    blind = auroc(a, b)
    assert blind.low < 0.5 < blind.high and auroc(a + 2, b).value == 1.0


def test_what_cannot_be_calibrated():
    detector = ReconstructionDetector(Mean(torch.zeros(1, 16, 16)))
    with pytest.raises(VerisimError, match="at least 20"):
        calibrate(detector, normal_images(5, 0))
    with pytest.raises(VerisimError, match=r"rate=1"):
        calibrate(detector, normal_images(30, 0), rate=1.0)
    settings = {"channels": (8, 16), "blocks": 1, "attention": (False, False)}
    with pytest.raises(VerisimError, match="finds no anomalies"):
        detector_of(build_model("diffusion", settings, ImageSpec((16, 16))))


def test_detect_from_the_command_line(tmp_path, capsys):
    """A picture gets a map, an overlay and a row; labelled held-out images get an AUROC; wrong names are told."""
    run, out = tmp_path / "run", tmp_path / "out"
    data = ["--data.count=500", "--data.size=16", "--data.label=label"]
    budget = ["--training.max_steps=2", "--training.max_minutes=0", "--model.width=8", "--model.latent=6"]
    assert main(["train", "X-V-fix", "--out", str(run), *data, *budget]) == 0
    picture = tmp_path / "a b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)).save(picture)
    assert main(["detect", str(run), str(picture), "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert len(rows) == 1 and 0 < float(rows[0]["p_value"]) <= 1
    assert (out / "a b.png").exists() and (out / "a b.map.nii.gz").exists()
    assert main(["detect", str(run), "--normal", "no finding"]) == 0
    assert "AUROC" in capsys.readouterr().out
    assert main(["detect", str(run), "--normal", "healthy"]) == 2
    assert "No class 'healthy'" in capsys.readouterr().err
    assert main(["detect", str(run), str(tmp_path / "absent.png")]) == 2
