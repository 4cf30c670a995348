"""Looking inside knee autoencoders: exact pieces, a run from end to end, and claims that say what the numbers say."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

from verisim.cli.main import main
from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate
from verisim.phantoms.base import Phantom
from verisim.recipes import load_recipe
from verisim.reproductions import reproduction
from verisim.reproductions.knee_inside import TABLE, inside_jobs
from verisim.reproductions.knee_inside_anomaly import CELLS, LEVELS, SHUFFLED, flagged, lead, ranked, told
from verisim.reproductions.knee_inside_claims import claims
from verisim.reproductions.knee_inside_codes import Relabelled, band, carried, usage
from verisim.reproductions.knee_inside_latents import active, gap, rank_correlation, traversals
from verisim.reproductions.knee_inside_phantoms import MIXED, Reader, fresh
from verisim.reproductions.knee_inside_selection import optimism
from verisim.reproductions.knee_table import SCALES, knee_data, knee_jobs
from verisim.reproductions.knee_table import SYSTEMS as SYSTEMS_OF_001
from verisim.reproductions.result import Options
from verisim.tasks.exploration import LatentUse


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the whole --------------------------------------------------------------------------------------


def test_smoke_run_and_again(tmp_path, monkeypatch, capsys):
    """A VAE, a VQ-VAE and a curve; everything stands beside its control; the second call trains and measures nothing."""
    call = ["reproduce", "001-inside", "--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.02"]
    call += ["--systems", "K-S1,K-S7,K-E5"]
    assert main(call) == 0
    path = tmp_path / "001-inside.16px.smoke.json"
    body = json.loads(path.read_text())
    numbers = body["numbers"]["16"]
    assert set(numbers["rows"]) == {"K-S1@0", "K-S7@0"}
    vae, vq = numbers["rows"]["K-S1@0"], numbers["rows"]["K-S7@0"]
    assert vae["latents"]["latents"] == 16 and len(vae["latents"]["traversal"]) in (2, 3)
    assert vq["codes"]["grid"] == [4, 4] and vq["codes"]["swaps"]["untouched"] == 0
    assert set(vae["anomaly"]["cells"]) == {c.name for c in CELLS} and set(numbers["baselines"]) == {
        "mean image",
        "brightness",
    }
    assert 0 <= vae["anomaly"]["image"]["all"]["low"] <= vae["anomaly"]["image"]["all"]["high"] <= 1
    assert {r["name"] for r in numbers["ranking"]} == {"K-S1", "K-S7", "mean image", "brightness"}
    curve = numbers["selection"]["K-E5@0"]
    assert (
        curve["steps"] == sorted(curve["steps"]) and curve["validated"]["mse_1e-5"]["step"] in curve["steps"]
    )
    names = {c["name"] for c in body["claims"]}
    assert {
        "traversal-even",
        "probe-space",
        "swap-inside",
        "conformal",
        "anomaly-fewer",
        "selection-source",
    } <= names
    made = {p.name for p in (tmp_path / "figures" / "001-inside.16px.smoke").iterdir()}
    assert made == {
        "K-S1.traversal.png",
        "K-S7.swap.png",
        "K-S7.usage.png",
        "anomaly.maps.png",
        "anomaly.dots.png",
    }

    def nothing(*_, **__):
        raise AssertionError("trained or measured again")

    monkeypatch.setattr("verisim.reproductions.runs._start", nothing)
    monkeypatch.setattr("verisim.reproductions.knee_inside.anomaly_row", nothing)
    monkeypatch.setattr("verisim.reproductions.knee_inside.selection_row", nothing)
    assert main(call) == 0
    assert json.loads(path.read_text())["numbers"]["16"] == numbers
    assert main([*call, "--data", "x"]) == 2
    assert "001-inside measures against the factors of knee phantoms" in capsys.readouterr().err


def test_runs_are_those_of_the_table(tmp_path):
    """The same folders and settings as `001`, so that neither trains what the other has; betas change the variant alone."""
    scale, options = replace(SCALES["small"], seeds=1), Options("small", tmp_path, tmp_path)
    data = knee_data(options, scale)
    table = knee_jobs(tmp_path, data, ("K-S1", "K-S7"), scale)
    mine = inside_jobs(tmp_path, data, ("K-S1", "K-S7", "K-S9.2", "K-E5"), scale)
    assert mine[:2] == table and table[0].folder == tmp_path / "runs" / "64" / "K-S1@0"
    assert [j.overrides["data.label"] for j in table] == ["label", ""] and set(TABLE) < set(SYSTEMS_OF_001)
    more = {j.folder.name: j for j in mine[2:]}
    assert set(more) == {f"K-S9.2-{b}@0" for b in ("0.1", "0.3", "3", "10")}
    as_vae = replace(table[0], recipe="K-S9.2", folder=table[0].folder.with_name("K-S9.2-3@0"))
    assert more["K-S9.2-3@0"] == as_vae and more["K-S9.2-10@0"].variant == "small-10"
    vae = load_recipe("K-S1").settings("small")
    for name, job in more.items():
        beta = float(name.split("-")[-1].removesuffix("@0"))
        swept = load_recipe(job.recipe).settings(job.variant)
        assert swept["model"] == {**vae["model"], "beta": beta} and swept["data"] == vae["data"]


def test_unknown_system(tmp_path):
    with pytest.raises(VerisimError, match=r"^K-X1 is not part of this table\. It has: K-S1, "):
        next(reproduction("001-inside")(Options("smoke", tmp_path, tmp_path, systems=("K-X1",))))


# --- latents ----------------------------------------------------------------------------------------


def test_rank_correlation():
    up = torch.arange(5.0).double()
    each = torch.stack([up.exp(), -up, up * 0, torch.tensor([0.0, 2, 1, 3, 4]).double()])
    assert rank_correlation(each).tolist() == pytest.approx([1, -1, 0, 0.9])


def test_active_counts_latents_that_vary():
    e = active(torch.cat([normal(300, 3), 0.01 * normal(300, 5, seed=1)], 1))
    assert (e.value, e.low, e.high) == (3, 3, 3)


def test_gap_is_that_of_a_latent_which_alone_knows():
    """Each factor in a latent of its own: far above the shuffled control; all mixed with all: hardly."""
    factors = {k: normal(400, seed=i) for i, k in enumerate(MIXED)}
    known = Phantom(Images(torch.zeros(400, 1, 16, 16), ImageSpec((16, 16))), factors)
    own = torch.stack(list(factors.values()), 1)
    clean, turned = (
        gap(own, known),
        gap(own @ torch.linalg.qr(normal(len(MIXED), len(MIXED), seed=9))[0], known),
    )
    assert clean["mean"]["value"] > 0.6 and clean["shuffled"] < 0.05 and set(clean["factors"]) == set(MIXED)
    assert turned["mean"]["high"] < 0.3 * clean["mean"]["low"]
    assert 0 < clean["mean"]["se"] < 0.05


class Painter:
    """Latent 0 moves the knee sideways by 2 pixels per unit, latent 1 does nothing; decoding keeps the phantom."""

    def __init__(self, images):
        self.images = images.pixels

    def encode(self, x):
        k = [int((self.images - one).abs().flatten(1).sum(1).argmin()) for one in x]
        return torch.tensor([[0.0, 0.0, float(i)] for i in k])

    def decode(self, z):
        return torch.stack([self.images[int(i)].roll(round(2 * float(a)), 2) for a, _, i in z])


def test_traversal_finds_what_a_latent_moves():
    """A latent that shifts the knee is said to move shift_x, evenly and by its size; one without KL, nothing."""
    moved, reader = fresh("moved", 6, 64), Reader(64, 600)
    use = LatentUse(
        torch.zeros(3), torch.tensor([1.0, 1.0, 0.1]), torch.tensor([5.0, 0.0, 0.1]), torch.ones(3).bool()
    )
    legible = dict.fromkeys(reader.names, 1.0)
    shift, nothing = traversals(Painter(moved.images), use, moved, reader, 1, legible)
    assert (shift["latent"], shift["factor"], shift["idle"]) == (0, "shift_x", False)
    assert shift["monotone"]["value"] > 0.98
    meant = (
        12 / 64 / reader.spread["shift_x"]
    )  # 12 pixels, more than phantoms ever move: a linear readout's guess
    assert 0.5 * meant < shift["effect"]["value"] < 1.5 * meant
    assert (nothing["latent"], nothing["idle"], nothing["visible"]) == (1, True, 0)
    assert nothing["largest_change"]["high"] == 0 and nothing["effect"]["value"] == 0


def test_reader_reads_fresh_phantoms():
    """What the traversal is judged by: most factors, and the ruler, on phantoms that the reader was not fitted to."""
    found = Reader(64, 600).legible(fresh("probe", 200, 64))
    assert found["shift_x"] > 0.9 and found["joint_space"] > 0.85 and found["ruler"] > 0.95


# --- codes ------------------------------------------------------------------------------------------


def test_carried_is_the_share_of_the_difference():
    own, other = normal(30), normal(30, seed=1)
    for share in (0.0, 0.3, 1.0):
        e = carried(torch.stack([own, own + share * (other - own), other], 1))
        assert e.value == pytest.approx(share, abs=1e-9) and e.high - e.low < 1e-9


def test_usage():
    """One code everywhere: 1; all equally often in every image: their number."""
    assert usage(torch.zeros(5, 2, 2).long(), 8).value == pytest.approx(1)
    e = usage(torch.arange(4).view(1, 2, 2).repeat(6, 1, 1), 8)
    assert e.value == pytest.approx(4) and e.high == pytest.approx(4)


def test_band_is_the_joint_or_as_many_rows_at_the_top():
    assert band((16, 16)) == ((6, 10), (0, 16)) and band((16, 16), top=True) == ((0, 4), (0, 16))
    assert band((4, 4)) == ((1, 3), (0, 4)) and band((2, 2)) == ((0, 2), (0, 2))


def test_relabelling_keeps_the_pattern_and_loses_the_names():
    """Equal codes stay equal within an image, and the same code is another one in the next image."""

    class Named:
        codes = 50

        class sampling_net:
            class autoencoder:
                class quantiser:
                    embed = staticmethod(lambda codes: codes[:, None].float())

        def encode_codes(self, x):
            return x[:, 0].long()

    x = torch.tensor([[3.0, 3.0, 7.0, 3.0]] * 20).view(20, 1, 2, 2)
    z = Relabelled(Named()).encode(x).view(20, 4)
    assert bool((z[:, 0] == z[:, 1]).all() and (z[:, 0] == z[:, 3]).all() and (z[:, 0] != z[:, 2]).all())
    assert len(z[:, 0].unique()) > 10


# --- anomalies --------------------------------------------------------------------------------------


def test_flagged_counts_and_knows_both_samples():
    p = torch.tensor([0.01, 0.05, 0.2, 0.9], dtype=torch.float64)
    e = flagged(p, 0.05, 100)
    assert e.value == 0.5 and e.se == pytest.approx(math.sqrt(0.05 * 0.95 * (1 / 4 + 1 / 100)))


def test_told_and_its_control():
    """Scores that are always higher with a disc give 1; with shuffled labels 0.5 is within the interval."""
    loud, quiet = normal(3, 40) + 9, normal(60, seed=1)
    assert told(loud, quiet).value == 1
    e = told(loud, quiet, shuffle=True)
    assert e.low < 0.5 < e.high
    once, thrice = told(loud[:1] - 9, quiet), told((loud[:1] - 9).repeat(3, 1), quiet)
    assert thrice.se == pytest.approx(once.se, rel=0.15)  # the same phantoms again are no new evidence


def test_leads_are_taken_on_the_same_phantoms():
    """Two detectors that agree but for a little: each alone is uncertain, the lead of the better one is not."""
    base, quiet = normal(3, 40), normal(60, seed=1)
    found = {
        "K-S1@0": {"loud": base + 0.5, "quiet": quiet},
        "K-S1@1": {"loud": base + 0.5, "quiet": quiet},
        "K-S7@0": {"loud": base + 0.3, "quiet": quiet},
        "same": {"loud": base + 0.3 + 1e-9 * normal(3, 40, seed=2), "quiet": quiet},
    }
    rows = ranked(found)
    assert rows[0]["name"] == "K-S1" and [r["rank"] for r in rows] == [1, 2, 2]
    assert rows[0]["value"] == pytest.approx(told(base + 0.5, quiet).value)
    e = lead(rows, "K-S1", "K-S7")
    assert e.low > 0 and e.high - e.low < 0.5 * (rows[0]["high"] - rows[0]["low"])
    back = lead(rows, "K-S7", "K-S1")
    assert (back.value, back.low, back.high) == (-e.value, -e.high, -e.low)
    assert lead(rows, "same", "K-S7").high <= 1e-3


# --- selection --------------------------------------------------------------------------------------


def noise_curve(spread):
    base = normal(1, 200)
    return {
        "mse_1e-5": 50 + base + spread * normal(20, 200, seed=1),
        "ms_ssim_1e-2": 90 + base + spread * normal(20, 200, seed=2),
    }


def test_optimism_of_pure_noise():
    """Steps that are equally good: the best on the test images looks better than it is, a validated one does not."""
    found = optimism(noise_curve(1.0))
    meant = 1.87 * math.sqrt(1 / 60 + 1 / 116)  # expected maximum of 20 normals, less what the rest then lack
    for metric in ("mse_1e-5", "ms_ssim_1e-2"):
        assert found["source"][metric].low > 0
        assert found["source"][metric].value == pytest.approx(meant, rel=0.25)
        assert abs(found["validated"][metric].value) < 0.1 * meant


def test_no_optimism_without_a_choice():
    """All steps the same: nothing to choose, nothing gained by choosing."""
    found = optimism(noise_curve(0.0))
    assert all(abs(e.value) < 0.02 for each in found.values() for e in each.values())


# --- claims -----------------------------------------------------------------------------------------


def around(value, se=0.01):
    return Estimate(value, value - 2 * se, value + 2 * se, se).as_dict()


def probe(value, control=0.0, chance=0.0):
    return {"value": around(value), "control": around(control), "chance": chance, "measure": "R2"}


def anomaly(auroc, flags=LEVELS):
    cells = {c.name: {"image": around(min(1.0, 0.5 + c.radius * c.contrast * 10))} for c in CELLS}
    return {
        "false_positives": {f"{a:g}": around(f) for a, f in zip(LEVELS, flags)},
        "calibrated_on_training_images": {f"{a:g}": around(a + 0.1) for a in LEVELS},
        "image": {"all": around(auroc)},
        SHUFFLED: around(0.5),
        "cells": cells,
    }


def moves(change, monotone=0.97, idle=False):
    return {
        "latent": 3,
        "idle": idle,
        "factor": "side",
        "monotone": around(monotone),
        "largest_change": around(change, 1e-4),
    }


def latent_row(bits, error, mig, active=16, **changes):
    found = {
        "latents": 16,
        "active": around(active, 0.0),
        "mig": {"mean": around(mig, 0.001), "shuffled": 0.002},
        "probes": {"joint_space": probe(0.8)},
        "traversal": [moves(0.5), moves(0.0, 0.0, idle=True)],
    }
    return {
        "rate_bits": around(bits),
        "mse_1e-5": around(error),
        "latents": {**found, **changes},
        "anomaly": anomaly(0.8),
    }


def numbers():
    swap = {"inside": around(0.9), "field": 0.5}
    codes = {
        "codes": 512,
        "perplexity": around(200, 1),
        "probes": {"grade": probe(0.5, 0.2, 0.2)},
        "relabelled": {"grade": probe(0.25, 0.2, 0.2)},
        "swaps": {
            "joint": {**swap, "carried": around(0.8)},
            "top": {**swap, "carried": around(0.0)},
            "untouched": 0.0,
        },
    }
    rows = {
        "K-S1@0": latent_row(100, 200, 0.01),
        "K-S2@0": latent_row(700, 100, 0.01, active=100, latents=512),
        "K-S7@0": {
            "rate_bits": around(2304),
            "mse_1e-5": around(30),
            "codes": codes,
            "anomaly": anomaly(0.7),
        },
        "K-S9.2-0.1@0": latent_row(140, 190, 0.01),
        "K-S9.2-10@0": latent_row(40, 400, 0.05, active=8),
    }
    choice = {"source": {"mse_1e-5": around(1.0, 0.1)}, "validated": {"mse_1e-5": around(0.0, 0.1)}}
    plain = {"mean image": anomaly(0.6), "brightness": anomaly(0.55)}
    order = {"K-S1": 0.8, "K-S2": 0.78, "K-S7": 0.7, "mean image": 0.6, "brightness": 0.55}
    return {
        "rows": rows,
        "baselines": plain,
        "ranking": order_of(order),
        "selection": {"K-E5@0": {"optimism": choice}},
    }


def order_of(auroc, se=0.01):
    names = sorted(auroc, key=lambda n: -auroc[n])
    return [
        {
            "name": n,
            "rank": i,
            **around(auroc[n]),
            "leads": {o: around(auroc[n] - auroc[o], se) for o in names[i:]},
        }
        for i, n in enumerate(names, start=1)
    ]


def verdicts(found):
    return {c.name: c.holds for c in claims(found)}


def test_claims_follow_the_numbers():
    names = (
        "traversal-even", "traversal-idle", "probe-space", "probe-shuffled", "active-large", "mig-shuffled", "beta-rate",
        "beta-error", "beta-active", "beta-mig", "swap-inside", "swap-carries", "swap-untouched", "codes-used",
        "codes-grade", "conformal", "conformal-seen", "anomaly-shuffled", "anomaly-models", "anomaly-size",
        "anomaly-fewer", "selection-source", "selection-validated",
    )  # fmt: skip
    assert verdicts(numbers()) == dict.fromkeys(names, True)


VAE, VQ = ("rows", "K-S1@0"), ("rows", "K-S7@0")
CHOICE = ("selection", "K-E5@0", "optimism")


@pytest.mark.parametrize(
    ("name", "path", "value", "holds"),
    [
        ("traversal-even", (*VAE, "latents", "traversal", 0, "monotone"), around(0.5), False),
        ("traversal-even", (*VAE, "latents", "traversal", 0, "monotone"), around(0.9), None),
        ("traversal-idle", (*VAE, "latents", "traversal", 1, "largest_change"), around(0.1, 1e-4), False),
        ("traversal-idle", (*VAE, "latents", "traversal", 0, "largest_change"), around(0.005, 1e-4), False),
        ("probe-space", (*VAE, "latents", "probes", "joint_space"), probe(0.4), False),
        ("probe-space", (*VAE, "latents", "probes", "joint_space"), probe(0.61), None),
        ("probe-shuffled", (*VQ, "codes", "probes", "grade"), probe(0.5, 0.3, 0.2), False),
        ("active-large", ("rows", "K-S2@0", "latents", "active"), around(400), False),
        ("mig-shuffled", (*VAE, "latents", "mig", "shuffled"), 0.02, False),
        ("mig-shuffled", (*VAE, "latents", "mig", "shuffled"), 0.011, None),
        ("beta-rate", ("rows", "K-S9.2-10@0", "rate_bits"), around(200), False),
        ("beta-rate", ("rows", "K-S9.2-10@0", "rate_bits"), around(140), None),
        ("beta-error", ("rows", "K-S9.2-10@0", "mse_1e-5"), around(50), False),
        ("beta-active", ("rows", "K-S9.2-10@0", "latents", "active"), around(16, 0.0), None),
        ("beta-mig", ("rows", "K-S9.2-10@0", "latents", "mig", "mean"), around(0.004, 0.001), False),
        ("swap-inside", (*VQ, "codes", "swaps", "joint", "inside"), around(0.5), False),
        ("swap-carries", (*VQ, "codes", "swaps", "joint", "carried"), around(0.1), False),
        ("swap-carries", (*VQ, "codes", "swaps", "top", "carried"), around(0.6), False),
        ("swap-untouched", (*VQ, "codes", "swaps", "untouched"), 1e-6, False),
        ("codes-used", (*VQ, "codes", "perplexity"), around(20), False),
        ("codes-grade", (*VQ, "codes", "relabelled", "grade"), probe(0.6, 0.2, 0.2), False),
        ("conformal", (*VQ, "anomaly"), anomaly(0.7, (0.15, 0.1, 0.2)), False),
        ("conformal-seen", (*VAE, "anomaly", "calibrated_on_training_images", "0.1"), around(0.1), False),
        ("anomaly-shuffled", (*VQ, "anomaly", SHUFFLED), around(0.6), False),
        ("anomaly-models", ("ranking",), order_of({"brightness": 0.9, "K-S1": 0.8, "K-S7": 0.7}), False),
        ("anomaly-models", ("ranking",), order_of({"K-S1": 0.8, "K-S7": 0.7, "brightness": 0.79}), None),
        ("anomaly-fewer", ("ranking",), order_of({"K-S7": 0.9, "K-S1": 0.8, "brightness": 0.5}), False),
        ("anomaly-fewer", ("ranking",), order_of({"K-S7": 0.81, "K-S1": 0.8, "brightness": 0.5}), None),
        ("selection-source", (*CHOICE, "source", "mse_1e-5"), around(-1.0, 0.1), False),
        ("selection-source", (*CHOICE, "source", "mse_1e-5"), around(0.1, 0.1), None),
        ("selection-validated", (*CHOICE, "validated", "mse_1e-5"), around(1.0, 0.1), False),
    ],
)  # fmt: skip
def test_each_claim_can_fail(name, path, value, holds):
    changed = copy.deepcopy(numbers())
    part = changed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert verdicts(changed)[name] is holds


def test_small_discs_found_as_often_fail():
    found = numbers()
    for row in found["rows"].values():
        for cell in row["anomaly"]["cells"].values():
            cell["image"] = around(0.8)
    assert verdicts(found)["anomaly-size"] is None


def test_claims_of_what_was_left_out_are_left_out():
    """One VAE alone: nothing is said of codes, betas, many latents or curves."""
    whole = numbers()
    order = order_of({"K-S1": 0.8, "mean image": 0.6, "brightness": 0.55})
    left = set(
        verdicts({**whole, "rows": {"K-S1@0": whole["rows"]["K-S1@0"]}, "ranking": order, "selection": {}})
    )
    assert not left & {
        "swap-inside",
        "codes-used",
        "beta-rate",
        "active-large",
        "selection-source",
        "anomaly-fewer",
    }
    assert {"probe-space", "conformal", "anomaly-models"} <= left
