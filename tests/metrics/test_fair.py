"""The fair protocol: order of controls, repeatability, JSON, small sets, refusals, verdicts with ties."""

import json
from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import DataError, RangeError, VerisimError
from verisim.metrics.controls import blurred
from verisim.metrics.protocols.fair import PRESETS, FairSettings, evaluate_fair, rank, summarise
from verisim.metrics.protocols.summary import measures

TINY = FairSettings(
    n_seeds=2, c2st_steps=45, bootstrap=100, networks=("random", "pixels"), judge_width=8, max_fakes=300
)


def chests(n, seed, noise=0.05, owner=None):
    """16 x 16 images with a blob on one side and texture; two images per patient."""
    g = torch.Generator().manual_seed(seed)
    x = (
        0.3 * torch.nn.functional.interpolate(torch.randn(n, 1, 4, 4, generator=g), (16, 16), mode="bilinear")
        - 0.3
    )
    x[..., 6:11, 9:14] += 0.6
    x = x + noise * torch.randn(n, 1, 16, 16, generator=g)
    patients = None if owner is None else tuple(f"{owner}{i // 2}" for i in range(n))
    return Images(x.clamp(-1, 1), ImageSpec((16, 16)), None, patients)


TRAIN, TEST = chests(160, 1, owner="a"), chests(110, 2, owner="b")


@pytest.fixture(scope="module")
def results():
    """Good twice (two training seeds), blurred, copying, mirroring, and far too few samples."""
    mirrored = chests(280, 6)
    mirrored.pixels[::2] = mirrored.pixels[::2].flip(-1)
    fakes = {
        "good@0": chests(280, 3),
        "good@1": chests(280, 4),
        "soft": blurred(chests(280, 5), 1.0),
        "copier": TRAIN.subset(torch.randint(160, (280,), generator=torch.Generator().manual_seed(0))),
        "mirrored": mirrored,
        "few": chests(12, 7),
    }
    seen = []
    out = evaluate_fair(fakes, TRAIN, TEST, TINY, lambda what, i, n: seen.append((what, i, n)))
    assert (
        seen[0][1] == 0 and seen[-1][1] == seen[-1][2] and [s[1] for s in seen] == sorted(s[1] for s in seen)
    )
    return out


def test_result_is_plain_json(results):
    """No tensors, no NaN: the report reads it from a file."""
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["schema"] == "verisim.fair/1" and set(results["controls"]) >= {"real", "blurred", "noise"}
    assert all(len(n["sha256"]) == 64 and n["label"].startswith("FD(") for n in results["networks"])
    assert results["data"]["n_fake_distribution"] == 160 and results["data"]["patients_train"] == 80


def test_real_is_first_and_noise_last(results):
    """Held-out reals rank first (ties allowed) and noise last, by judge and by distance."""
    for measure in ("c2st", "fd/random", "kid/random", "fd/pixels"):
        rows = [r for r in rank(results, measure) if r["rank"] is not None]
        ranks = {r["name"]: r["rank"] for r in rows}
        assert ranks["real"] == 1 and ranks["noise"] == max(ranks.values())
        assert ranks["good"] <= ranks["soft"]


def test_controls_of_the_judge(results):
    """real-vs-real covers 0.5, noise at least 0.99, blur seen; the good generator is not told apart."""
    auc = {n: r["c2st"]["auc"] for n, r in results["controls"].items() if "auc" in r["c2st"]}
    assert auc["real"]["low"] <= 0.5 <= auc["real"]["high"]
    assert auc["noise"]["value"] >= 0.99 and auc["blurred"]["value"] > 0.8
    assert (
        results["rows"]["good@0"]["c2st"]["auc"]["value"]
        < 0.65
        < results["rows"]["soft"]["c2st"]["auc"]["value"]
    )


def test_copies_and_mirrors_are_caught(results):
    """Copies have perfect fidelity but are flagged, with the pairs for the pictures; so is mirroring."""
    copier, good = results["rows"]["copier"]["memorisation"]["image"], results["rows"]["good@0"]
    assert copier["flag"] and copier["nearest"][0]["distance"] < 1e-6
    assert not good["memorisation"]["image"]["flag"] and good["laterality"]["flag"] is False
    assert results["rows"]["mirrored"]["laterality"]["flag"] is True
    assert results["controls"]["copies"]["c2st"]["value"] is None
    text = "\n".join(results["warnings"])
    assert "copier: samples lie closer" in text and "mirrored: left and right" in text
    assert "good@0: samples" not in text and "Control failed" not in text


def test_nearest_indices_point_into_the_given_sets():
    """Indices count in the caller's own order: pixels at that place are the pair."""
    fake = chests(60, 9)
    fake.pixels[37] = TRAIN.pixels[11]
    settings = replace(TINY, networks=("pixels",), c2st_steps=2, n_seeds=1, bootstrap=20)
    out = evaluate_fair({"g": fake}, TRAIN, TEST, settings)
    assert out["rows"]["g"]["memorisation"]["image"]["nearest"][0] == {
        "fake": 37,
        "train": 11,
        "distance": 0.0,
    }
    again = evaluate_fair({"g": fake}, TRAIN, TEST, settings)
    assert {**out, "seconds": 0} == {**again, "seconds": 0}


def test_too_few_samples_give_reasons_not_crashes(results):
    """12 samples: each measure is None with a number, and other rows keep their sample count."""
    few = results["rows"]["few"]
    for node in (few["c2st"], few["fd"]["random"], few["kid"]["pixels"], few["prdc"]["random"]):
        assert node["value"] is None and "at least" in node["reason"]
    assert few["memorisation"]["image"]["n_fake"] == 12
    assert {r["name"]: r["rank"] for r in rank(results)}["few"] is None


@pytest.mark.parametrize("n", [1, 2, 20, 47])
def test_any_number_of_samples(n):
    """From one sample on nothing crashes."""
    settings = replace(TINY, networks=("random",), c2st_steps=1, n_seeds=1, bootstrap=10)
    out = evaluate_fair({"g": chests(n, 3)}, TRAIN, TEST, settings)
    assert out["rows"]["g"]["n"] == n and json.dumps(out, allow_nan=False)


def test_black_images_are_scored():
    """A generator that only paints black (a failed training) gets numbers: no variety, recall 0."""
    settings = replace(TINY, networks=("random",), c2st_steps=2, n_seeds=1, bootstrap=10)
    black = Images(torch.full((60, 1, 16, 16), -1.0), ImageSpec((16, 16)))
    row = evaluate_fair({"g": black}, TRAIN, TEST, settings)["rows"]["g"]
    assert row["diversity"]["image"]["value"] == 0 and row["prdc"]["random"]["recall"]["value"] == 0
    assert row["fd"]["random"]["value"] > 0


def test_volumes():
    """The same protocol in 3D, with all three feature networks."""

    def volumes(n, seed):
        g = torch.Generator().manual_seed(seed)
        return Images(0.3 * torch.randn(n, 1, 8, 9, 10, generator=g).clamp(-3, 3), ImageSpec((8, 9, 10)))

    settings = FairSettings(n_seeds=1, c2st_steps=2, bootstrap=10, domain_steps=2, judge_width=4)
    out = evaluate_fair({"g": volumes(60, 1)}, volumes(48, 2), volumes(40, 3), settings)
    assert set(out["rows"]["g"]["fd"]) == {"random", "domain", "pixels"}
    assert all(v["value"] is not None for v in out["rows"]["g"]["fd"].values())
    assert any("No patient identifiers" in w for w in out["warnings"])


def test_cross_matrix_diagonal(results):
    """Each judge on its own generator's held-out samples gives (with this test set) its own AUC."""
    cross = results["cross"]
    i = cross["judges"].index("soft")
    assert cross["auc"][i][i] == pytest.approx(results["rows"]["soft"]["c2st"]["seeds"][0], abs=1e-9)
    assert len(cross["auc"]) == len(cross["judges"]) == len(cross["auc"][0])


def test_summary_pools_seeds_and_ranks_with_ties(results):
    """good@0 and good@1 become one entry, the mean of both; it ties with the real control."""
    pooled = summarise(results)
    assert "good@0" not in pooled and pooled["good"]["seeds"] == 2
    values = [results["rows"][f"good@{i}"]["fd"]["random"]["value"] for i in (0, 1)]
    assert pooled["good"]["fd/random"]["value"] == pytest.approx(sum(values) / 2)
    row = next(r for r in rank(results) if r["name"] == "good")
    assert "real" in row["ties"] and row["low"] <= row["value"] <= row["high"]
    assert {r["kind"] for r in rank(results, include_controls=False)} == {"generator"}
    assert pooled["copier"]["flags"] == {"memorisation": 1, "laterality": 0}
    for name in measures(results):
        assert len(rank(results, name)) == len(pooled)
    with pytest.raises(VerisimError, match="Did you mean 'c2st'"):
        rank(results, "c2s")


def test_refusals():
    """Other ranges and sizes, a patient on both sides, no sets, taken names: one clear error each."""
    good = chests(60, 3)
    cases = [
        ({"g": good.to_range(0, 1)}, TEST, RangeError, "one size and range"),
        ({"g": Images(torch.zeros(60, 1, 8, 8), ImageSpec((8, 8)))}, TEST, RangeError, "8, 8"),
        ({"g": good}, TRAIN.subset(torch.arange(40)), DataError, "and 19 more in both"),
        ({}, TEST, VerisimError, "Nothing to compare"),
        ({"noise": good}, TEST, VerisimError, "control rows"),
        ({"g": good}, TEST.subset(torch.arange(5)), VerisimError, "5 held-out images"),
    ]
    for fakes, test, error, text in cases:
        with pytest.raises(error, match=text):
            evaluate_fair(fakes, TRAIN, test, TINY)


def test_presets():
    """The full preset has the three seeds of the protocol; quick costs less in every respect."""
    full, quick = PRESETS["full"], PRESETS["quick"]
    assert full.n_seeds >= 3 and full.max_fakes >= 1000 and full.k == 5
    assert quick.n_seeds < full.n_seeds and quick.c2st_steps < full.c2st_steps
