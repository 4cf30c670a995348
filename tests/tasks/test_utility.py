"""Utility: good synthetic images teach, useless ones do not, shuffled labels are at chance."""

import json
from dataclasses import replace

import pytest
import torch

from verisim.cli.main import main
from verisim.data.writers import write_samples
from verisim.errors import VerisimError
from verisim.metrics.judges import JudgeSettings
from verisim.metrics.utility import shuffled_labels
from verisim.phantoms import PHANTOMS
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant
from verisim.tasks.utility import UtilitySettings, labelled_source, measure_utility
from verisim.training.source import DataSettings, open_dataset

QUICK = UtilitySettings(ratios=(0.5, 1.0, 9.0), n_seeds=1, steps=60, width=8, bootstrap=200, permutations=4)


def marked(images):
    """A sign that a classifier can learn: class 1 is brighter in one corner."""
    x = images.pixels.clone() * 0.5
    x[images.labels == 1, :, :6, :6] += 0.4
    return replace(images, pixels=x)


@pytest.fixture(scope="module")
def dataset():
    made = open_dataset(DataSettings(count=250, size=16, label="label"))
    splits = {k: marked(replace(v, labels=torch.arange(len(v)) % 2)) for k, v in made.splits.items()}
    return replace(made, splits=splits, class_names=("absent", "present"))


def fakes(n=220, right=True, seed=5):
    made = PHANTOMS["chest"].make(n, seed=seed, size=16).images
    truth = torch.arange(n) % 2
    images = marked(replace(made, labels=truth))
    labels = truth if right else truth[torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    return replace(images, labels=labels).quantise()


def test_good_useless_and_control(dataset):
    """Right labels: TSTR near 1. Random labels: at chance, and harmful or of no use. Shuffled real labels: chance."""
    made = [Contestant("right", fakes()), Contestant("wrong", fakes(right=False))]
    results = json.loads(json.dumps(measure_utility(made, dataset, QUICK)))
    right, wrong = results["rows"]["right"], results["rows"]["wrong"]
    assert results["trtr"]["auc"]["value"] > 0.9 and right["tstr"]["auc"]["value"] > 0.9
    assert right["trts"]["auc"]["value"] > 0.9
    assert wrong["tstr"]["auc"]["value"] < 0.8 and 0.35 < wrong["trts"]["auc"]["value"] < 0.65
    assert wrong["gains"][1]["gain_auc"]["value"] < right["gains"][1]["gain_auc"]["value"] + 1e-9
    control = results["shuffled"]["auc"]
    assert control["low"] <= 0.5 <= control["high"]
    assert [g["n_synthetic"] for g in right["gains"]] == [100, 200, 1800]
    assert "needs 1800" in right["gains"][2]["reason"]
    assert not any("Control failed" in w for w in results["warnings"])


def test_the_control_would_notice(dataset, monkeypatch):
    """Negative control of the control: labels that are not shuffled are reported as a failure."""
    monkeypatch.setattr(torch, "randperm", lambda n, generator=None: torch.arange(n))
    e = shuffled_labels(dataset["train"], held_out(dataset), JudgeSettings(steps=60, width=8), 0, 3, 100)
    assert e.low > 0.5


def test_unlabelled_set_gives_its_reason(dataset):
    """A set without labels is a row with a reason; the others are not lost."""
    bare = replace(fakes(40), labels=None)
    few = replace(QUICK, ratios=(0.2,), steps=10, permutations=2)
    results = measure_utility([Contestant("bare", bare)], dataset, few)
    assert "no labels" in results["rows"]["bare"]["reason"] and any("bare" in w for w in results["warnings"])


def test_folders_map_classes_by_name(dataset, tmp_path):
    """Class names decide, not their order in the folder; unknown ones are an error that lists those known."""
    images = fakes(20)
    swapped = replace(images, labels=1 - images.labels)
    write_samples(tmp_path / "a", swapped, {"model": "x"}, class_names=("present", "absent"))
    found = labelled_source(str(tmp_path / "a"), 20, dataset, "label", 0)
    by_name = dict(zip(found.images.names, found.images.labels.tolist()))
    assert [by_name[f"sample_{i:04d}.png"] for i in range(20)] == images.labels.tolist()
    assert len(labelled_source(str(tmp_path / "a"), 7, dataset, "label", 0).images) == 7
    write_samples(tmp_path / "b", images, {"model": "x"}, class_names=("absent", "severe"))
    with pytest.raises(VerisimError, match=r"class 'severe'.*\(absent, present\)"):
        labelled_source(str(tmp_path / "b"), 20, dataset, "label", 0)
    with pytest.raises(VerisimError, match="does not exist"):
        labelled_source("/nowhere", 20, dataset, "label", 0)


@pytest.mark.parametrize(
    ("change", "message"), [({"ratios": (0.0,)}, "above 0"), ({"n_seeds": 0}, "n_seeds is 0")]
)
def test_bad_settings(change, message):
    """Settings out of range are refused."""
    with pytest.raises(VerisimError, match=message):
        UtilitySettings(**change)


def test_command(tmp_path, capsys):
    """The verb writes numbers and a report, and asks for a label."""
    made = PHANTOMS["chest"].make(80, seed=3, size=16)
    images = replace(made.images, labels=made.images.labels)
    names = PHANTOMS["chest"].class_names
    write_samples(tmp_path / "made", images, {"model": "x"}, class_names=names)
    data = ["--data.count=200", "--data.size=16"]
    assert main(["utility", str(tmp_path / "made"), *data]) == 2
    assert "--data.label COLUMN" in capsys.readouterr().err
    argv = [
        "utility",
        str(tmp_path / "made"),
        *data,
        "--data.label=label",
        "--quick",
        "--seeds=1",
        "--ratios",
        "0.2",
    ]
    assert main([*argv, f"--out={tmp_path / 'out'}"]) == 0
    results = json.loads((tmp_path / "out" / "utility.json").read_text())
    assert "tstr" in results["rows"]["made"] or "reason" in results["rows"]["made"]
    assert "Are the synthetic images useful?" in (tmp_path / "out" / "utility.html").read_text()
    assert "shuffled labels" in capsys.readouterr().out
