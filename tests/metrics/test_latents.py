"""Probes, MIG and active units: exact where they can be, and with controls that must fail."""

import math

import pytest
import torch

from verisim.errors import VerisimError
from verisim.metrics.latents import active_units, mutual_information_gap, probe, readout


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_probe_reads_what_is_linear_and_nothing_else():
    """A linear target is read exactly; its shuffled form, and codes without it, are at chance."""
    z = normal(400, 6)
    found = probe(z, 2 * z[:, 1] - z[:, 4])
    assert found["value"] > 0.999 and found["control"] < 0.1 and found["measure"] == "R2"
    blind = probe(normal(400, 6, seed=1), z[:, 1])
    assert blind["value"] < 0.1


def test_probe_of_classes():
    """Separable classes are told apart; the control is near 1 / classes."""
    y = torch.arange(300) % 3
    z = normal(300, 5)
    z[:, 0] += 8.0 * y
    found = probe(z, y)
    assert found["value"] > 0.95 and found["chance"] == pytest.approx(1 / 3)
    assert abs(found["control"] - 1 / 3) < 0.12


def test_probe_keeps_patients_together():
    """Codes that give away the patient but not the class do not help when patients are held out."""
    patient = torch.arange(240) // 6  # 40 patients with 6 images
    y = (torch.randperm(40, generator=torch.Generator().manual_seed(0)) % 2)[patient]  # class = patient's
    z = torch.nn.functional.one_hot(patient, 40).float() + 0.01 * normal(240, 40)
    leaky = probe(z, y)["value"]
    honest = probe(z, y, [str(p) for p in patient.tolist()])["value"]
    assert leaky > 0.95 and honest < 0.75


@pytest.mark.parametrize(
    "codes, target, words",
    [
        (normal(10, 3), torch.arange(10) % 2, "at least 20"),
        (normal(40, 3), torch.zeros(40, dtype=torch.long), "nothing can be read"),
        (normal(40, 3) * math.nan, torch.arange(40) % 2, "NaN"),
    ],
)
def test_probe_refuses(codes, target, words):
    with pytest.raises(VerisimError, match=words):
        probe(codes, target)


def test_probe_of_one_patient():
    with pytest.raises(VerisimError, match="1 patient"):
        probe(normal(40, 3), torch.arange(40) % 2, ["p"] * 40)


def test_mig_is_one_for_one_latent_and_zero_for_two():
    """z_0 = v alone: gap 1. The same factor in two latents: gap exactly 0. Noise: near 0."""
    v = torch.arange(400) % 5
    noise = normal(400, 3)
    alone = mutual_information_gap(torch.cat([v[:, None].float(), noise], 1), {"v": v})
    assert 0.9 < alone["v"] <= 1.0 and alone["mean"] == alone["v"]
    both = mutual_information_gap(torch.stack([v.float(), -v.float()], 1), {"v": v})
    assert both["v"] == pytest.approx(0.0, abs=1e-12)
    assert mutual_information_gap(noise, {"v": v})["v"] < 0.1


def test_mig_refuses_what_has_no_gap():
    with pytest.raises(VerisimError, match="d >= 2"):
        mutual_information_gap(normal(50, 1), {"v": torch.arange(50)})
    with pytest.raises(VerisimError, match="none of the factors varies"):
        mutual_information_gap(normal(50, 2), {"v": torch.ones(50)})


def test_active_units():
    """A latent whose mean hardly moves is not in use."""
    z = normal(1000, 2)
    z[:, 1] *= 0.05
    assert active_units(z).tolist() == [True, False]


def test_readout_intervals():
    """The value is the probe's; its interval holds it, narrows with more images, and the control's holds chance."""
    z = normal(400, 6)
    target = z[:, 1] + normal(400, 1, seed=2)[:, 0]
    plain, found = probe(z, target), readout(z, target)
    e = found.estimates(draws=300)
    assert e["value"].value == plain["value"] == pytest.approx(0.5, abs=0.1)
    assert e["value"].low < e["value"].value < e["value"].high and e["control"].low < 0 < 0.05
    few = readout(z[:100], target[:100]).estimates(draws=300)["value"]
    assert few.se > 1.4 * e["value"].se
    twice = readout(z.repeat(2, 1), target.repeat(2), [str(i) for i in range(400)] * 2).estimates(draws=300)
    assert twice["value"].se == pytest.approx(
        e["value"].se, rel=0.2
    )  # a patient's second image says nothing new


def test_scores_under_weights_are_those_of_repeated_images():
    """R2 and balanced accuracy of images drawn twice and never equal those of the list that this makes."""
    for target in (normal(60, 1)[:, 0], torch.arange(60) % 3):
        found = readout(normal(60, 4, seed=3) + target[:, None], target)
        w = torch.zeros(1, 60, dtype=torch.float64)
        w[0, :40] = 2
        index = torch.arange(40).repeat(2)
        whole = found.scores(found.truth[index], found.told[index])
        assert float(found.scores(found.truth, found.told, w)[0]) == pytest.approx(float(whole))
