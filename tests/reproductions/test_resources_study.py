"""Resources counted: smoke run, autograd's graph in closed form, what a forgotten skip costs, claims that follow the numbers."""

import copy
import json

import pytest
import torch

from verisim.cli.main import main
from verisim.errors import VerisimError
from verisim.reproductions.resources_claims import GIB, PARAMETERS, claims
from verisim.reproductions.resources_study import (
    SCALES,
    allocated_peak,
    graph_bytes,
    kept,
    parameters,
    run,
    small_model,
    unet,
)
from verisim.reproductions.result import Options
from verisim.training.memory import with_saved_bytes


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resources")
    assert main(["reproduce", "002-resources", "--scale", "smoke", "--out", str(folder)]) == 0
    assert (folder / "figures" / "002-resources.smoke" / "memory.png").exists()
    return json.loads((folder / "002-resources.smoke.json").read_text())["numbers"]


def failing(numbers):
    return {c.name for c in claims(numbers) if c.holds is False}


def test_smoke(numbers):
    """What does not hold of the source's numbers is known; whether 19 channels fit is not asked here; no images are read."""
    assert failing(numbers) - {"allocated"} == {"kept-64", "inference", "B-B-one"}
    assert {c.name for c in claims(numbers) if c.holds is None} == {"gain"}
    for row in numbers["measured"].values():
        assert row["counted"] == row["real"] and row["allocated_peak"] > 0 and row["seconds"] > 0
    with pytest.raises(VerisimError, match="reads no images"):
        next(run(Options("smoke", "", "", data="x")))


def test_published_parameters():
    """The seven networks, exactly; one channel more is another number."""
    assert parameters() == PARAMETERS
    assert sum(p.numel() for p in unet("average", 29, 9).parameters()) != PARAMETERS["U-Net, 8 channels"]


def test_graph_of_a_closed_form():
    """exp keeps its result, a product both factors, a sum nothing; each once, and not what is left out."""
    w, v = torch.randn(1000, requires_grad=True), torch.randn(1000)
    assert graph_bytes((w.exp() * v).sum(), []) == 4 * 2000
    assert graph_bytes((w.exp() * v).sum(), [v]) == 4 * 1000
    assert graph_bytes((w + v).sum(), []) == 0


@pytest.mark.parametrize("skip", ["average", "concat"])
def test_graph_and_counter_agree(skip):
    """Two ways to the same bytes, of a real step; the allocator hands out no less than the counter saw kept."""
    model, x = small_model(SCALES["smoke"], skip)
    loss, saved = with_saved_bytes(lambda: model.trial_loss(x, None), model.parameters())
    assert graph_bytes(loss, list(model.parameters())) == pytest.approx(saved, rel=1e-3)
    assert allocated_peak(model, x) > saved
    assert all(p.grad is None for p in model.parameters())


def test_joined_skips_are_kept_and_averaged_ones_are_free(monkeypatch):
    """A decoder that ignores its averaged skips keeps as much; concatenated ones are kept once more."""
    with torch.device("meta"):
        average, concat = unet("average", 4), unet("concat", 4)
    plain = kept(average, 8, 64)
    assert kept(concat, 8, 64) > 1.3 * plain
    monkeypatch.setattr("verisim.nets.guided_unet.GuidedUNet.join", lambda self, h, skip: h)
    assert kept(average, 8, 64) == plain


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (lambda n: n["parameters"].update({"sine, 3D": 1}), "parameters"),
        (lambda n: n["unet"]["average 29, 128"].update(saved_bytes=int(10.7 * GIB)), "kept-128"),
        (lambda n: n["unet"]["concat 29, 128"].update(parameters=33_000_000), "concat"),
        (lambda n: n["unet"]["sum 29, 128"].update(saved_bytes=1), "sum"),
        (lambda n: n["systems"]["B-D"].update(training_bytes=int(11.6 * GIB)), "training-B-D"),
        (lambda n: n["systems"]["B-F"].update(saved_bytes=int(11.6 * GIB)), "published-B-F"),
        (lambda n: n["systems"]["B-E"].update(training_bytes=int(80 * GIB * 2)), "ratio"),
        (lambda n: n["systems"]["B-D"].update(inference_bytes=int(20 * GIB)), "inference-ratio"),
        (lambda n: n["anomaly"]["B-A m=16"]["saved_bytes"].update({"256": 6 * 10**9}), "B-A"),
        (lambda n: n["anomaly"]["B-B m=1"]["saved_bytes"].update({"4": 10**8}), "B-B-twice"),
        (lambda n: n["anomaly"]["B-A m=1"]["saved_bytes"].update({"256": 10**9}), "B-A-fracture"),
        (lambda n: n["points"]["real_gabor, 3D"].update(saved_bytes=14 * 10**9, twice=28 * 10**9), "points"),
        (lambda n: n["points"]["relu, 2D"].update(twice=n["points"]["relu, 2D"]["saved_bytes"]), "points-twice"),
        (lambda n: n["measured"]["concat"].update(real=n["measured"]["concat"]["counted"] + 4), "real"),
        (lambda n: n["measured"]["average"].update(graph=1), "graph"),
        (lambda n: n["measured"]["concat"].update(real=n["measured"]["average"]["counted"]), "forgotten"),
    ],
)  # fmt: skip
def test_claims_follow_the_numbers(numbers, change, claim):
    """Each claim fails when its number is changed."""
    worse = copy.deepcopy(numbers)
    assert claim not in failing(worse)
    change(worse)
    assert claim in failing(worse)


def test_gain_is_decided_where_the_next_width_is_counted(numbers):
    """18 fits: with 19 too wide the source is right, with 19 fitting it is not."""
    for size, holds in ((10.6, True), (10.3, False)):
        more = copy.deepcopy(numbers)
        for width, gib in ((19, size), (20, 10.9)):
            row = {"skip": "concat", "width": width, "side": 128, "parameters": 1}
            more["unet"][f"concat {width}, 128"] = {**row, "saved_bytes": int(gib * GIB)}
        assert next(c for c in claims(more) if c.name == "gain").holds is holds
