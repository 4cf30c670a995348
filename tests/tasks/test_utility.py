"""Utility: good synthetic images teach, useless ones do not, shuffled labels are at chance; so for detectors."""

import json
from dataclasses import replace

import pytest
import torch

from verisim.cli.main import main
from verisim.cli.utility import QUICK as QUICK_COMMAND
from verisim.data.writers import write_samples
from verisim.errors import VerisimError
from verisim.metrics.controls import noise_like
from verisim.metrics.judges import JudgeSettings
from verisim.metrics.utility import shuffled_labels
from verisim.phantoms import PHANTOMS
from verisim.reports.utility import print_table, utility_report
from verisim.tasks.comparison import held_out
from verisim.tasks.contestants import Contestant
from verisim.tasks.downstream import DOWNSTREAM
from verisim.tasks.utility import UtilitySettings, labelled_source, measure_utility
from verisim.training.source import DataSettings, open_dataset

QUICK = UtilitySettings(ratios=(0.5, 1.0, 9.0), n_seeds=1, steps=60, width=8, bootstrap=200, permutations=4)

GOLDEN = [0.8808, 0.7648, 0.879, -0.0259]  # AUC: real; synthetic; of synthetic images; lower end of the gain


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
    ("change", "message"),
    [
        ({"ratios": (0.0,)}, "above 0"),
        ({"n_seeds": 0}, "n_seeds is 0"),
        ({"growth": 0}, "growth is 0"),
        ({"tasks": ()}, "No task given. Known: classifier, densenet121"),
        (
            {"tasks": ("classifier", "reconstructon")},
            "Unknown task 'reconstructon'. Did you mean 'reconstruction'",
        ),
    ],
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


# --- the other downstream users --------------------------------------------------------------------

DETECT = replace(
    QUICK,
    ratios=(0.5, 9.0),
    steps=20,
    permutations=2,
    tasks=("reconstruction",),
    normal="absent",
    detector_steps=50,
)


@pytest.fixture(scope="module")
def detected(dataset):
    """A detector by good synthetic images, by noise, and by normal images alone, beside the classifier."""
    good = fakes()
    noise = noise_like(good, len(good), torch.Generator().manual_seed(0))
    sets = {
        "good": good,
        "noise": replace(noise, labels=good.labels).quantise(),
        "healthy": good.subset(good.labels == 0),
    }
    made = [Contestant(n, images, {"family": "folder"}) for n, images in sets.items()]
    settings = replace(DETECT, tasks=("classifier", "reconstruction"))
    return json.loads(json.dumps(measure_utility(made, dataset, settings)))


def test_a_detector_beside_the_classifier(detected):
    """Good normal images teach the detector, noise does not; gains and counts are those of normal images."""
    task = detected["tasks"]["reconstruction"]
    assert task["normal"] == "absent" and task["n_normal_train"] == 100 and task["output"] == "scores"
    good, noise = task["rows"]["good"], task["rows"]["noise"]
    assert good["tstr"]["auc"]["value"] > 0.75 and good["trts"]["auc"]["value"] > 0.75
    assert noise["tstr"]["auc"]["value"] < good["tstr"]["auc"]["value"] - 0.1
    assert good["n_normal"] == 110 and good["gains"][0]["n_synthetic"] == 100
    assert 35 < good["gains"][0]["n_normal"] < 65 and "needs 1800" in good["gains"][1]["reason"]
    assert "balanced_accuracy" not in good["tstr"] and set(good["tstr"]["auc"]) == {
        "value",
        "low",
        "high",
        "se",
    }
    assert task["control"]["kind"] == "noise images"


def test_normal_images_alone_teach_a_detector(detected):
    """They cannot be read by one, and teach no classifier: each says so, and the rest is there."""
    row = detected["tasks"]["reconstruction"]["rows"]["healthy"]
    assert row["tstr"]["auc"]["value"] > 0.7 and "gain_auc" in row["gains"][0]
    assert "110 normal and 0 abnormal images" in row["trts"]["reason"]
    assert "only one class" in detected["rows"]["healthy"]["reason"]


def test_the_classifier_is_what_it_was(dataset):
    """Golden numbers, measured before there were other tasks; and other tasks beside it change nothing."""
    settings = replace(QUICK, steps=25, n_seeds=2, ratios=(0.5,), permutations=2)
    dim = replace(dataset, splits={k: weaker(v) for k, v in dataset.splits.items()})
    made = [Contestant("right", weaker(fakes()))]
    alone = measure_utility(made, dim, settings)
    found = (alone["trtr"], alone["rows"]["right"]["tstr"], alone["rows"]["right"]["trts"])
    values = [x["auc"]["value"] for x in found] + [alone["rows"]["right"]["gains"][0]["gain_auc"]["low"]]
    assert values == pytest.approx(GOLDEN, abs=0.01)
    more = replace(settings, tasks=("reconstruction", "classifier"), normal="absent", detector_steps=2)
    both = measure_utility(made, dim, more)
    assert all(alone[k] == both[k] for k in ("trtr", "shuffled", "rows", "warnings", "data"))
    assert "tasks" not in alone and list(both["tasks"]) == ["reconstruction"]


def weaker(images):
    """Half the sign that `marked` gave."""
    x = images.pixels.clone()
    x[images.labels == 1, :, :6, :6] -= 0.32
    return replace(images, pixels=x.clamp(-1, 1))


def test_below_chance_is_reported_as_it_is(dataset):
    """Normal images with grain, abnormal ones without, which are easier to redraw: the AUC stays below 0.5, and a warning says so."""

    def flat(images):
        grain = torch.randn(images.pixels.shape, generator=torch.Generator().manual_seed(len(images))) * 0.2
        normal = (images.labels == 0).float()[:, None, None, None]
        return replace(images, pixels=(images.pixels + grain * normal).clamp(-1, 1))

    easy = replace(dataset, splits={k: flat(v) for k, v in dataset.splits.items()})
    task = measure_utility([Contestant("made", fakes(80))], easy, replace(DETECT, ratios=(9.0,)))["tasks"]
    found = task["reconstruction"]
    assert found["trtr"]["auc"]["high"] < 0.1
    assert any("takes normal images for the abnormal ones" in w for w in found["warnings"])


def test_one_task_that_fails_does_not_lose_the_others(dataset, monkeypatch):
    """Its reason stands in its place."""

    def broken(*args):
        raise VerisimError("It burst.")

    monkeypatch.setitem(DOWNSTREAM, "uncertainty", replace(DOWNSTREAM["uncertainty"], fit=broken))
    short = replace(
        DETECT, ratios=(9.0,), tasks=("uncertainty", "reconstruction"), detector_steps=2, bootstrap=20
    )
    found = measure_utility([Contestant("made", fakes(80))], dataset, short)
    assert found["tasks"]["uncertainty"]["reason"] == "It burst."
    assert "tstr" in found["tasks"]["reconstruction"]["rows"]["made"] and "trtr" not in found
    assert "It burst." in str(utility_report(found))


def test_report_of_several_tasks(detected, capsys):
    """A table per task, in plain words, on the terminal and in the report."""
    print_table(detected)
    shown, html = capsys.readouterr().out, str(utility_report(detected))
    assert "Detector by redrawing (reconstruction)" in shown
    for text in (html, " ".join(shown.split())):
        assert "real-trained" in text and "noise images" in text
    for words in ("what a detector is worth", "class 'absent' alone (100 real ones)", "Read by a real-trained detector",
                  "220 images, 110 normal", "a floor, not 0.5", "0 abnormal images"):  # fmt: skip
        assert words.lower() in html.lower(), words


def test_command_with_tasks(tmp_path, capsys, monkeypatch):
    """--tasks and --normal reach the measurement; a wrong word is one sentence."""
    monkeypatch.setitem(QUICK_COMMAND, "detector_steps", 5)
    made = PHANTOMS["chest"].make(80, seed=3, size=16)
    write_samples(tmp_path / "made", made.images, {"model": "x"}, class_names=PHANTOMS["chest"].class_names)
    argv = ["utility", str(tmp_path / "made"), "--data.count=200", "--data.size=16", "--data.label=label",
            "--quick", "--seeds=1", "--ratios", "0.2", f"--out={tmp_path / 'out'}"]  # fmt: skip
    for more, message in (
        (["--tasks", "residul"], "Unknown task 'residul'. Did you mean 'residual'"),
        (
            ["--tasks", "reconstruction", "--normal", "findin"],
            "No class 'findin' that could count as normal.",
        ),
        (["--data.normal=no finding"], "Say --normal 'no finding' instead."),
    ):
        assert main([*argv, *more]) == 2
        assert message in capsys.readouterr().err
    assert main([*argv, "--tasks", "reconstruction"]) == 0
    found = json.loads((tmp_path / "out" / "utility.json").read_text())
    assert found["tasks"]["reconstruction"]["normal"] == "no finding" and "trtr" not in found
    assert "Detector by redrawing" in (tmp_path / "out" / "utility.html").read_text()
