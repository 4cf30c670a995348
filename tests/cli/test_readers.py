"""`verisim readers` from folders of images to a score."""

import json

import pytest

from verisim.cli.main import main
from verisim.data.writers import write_samples
from verisim.metrics.reading import Answer
from verisim.phantoms import PHANTOMS
from verisim.web.answers import AnswerBook
from verisim.web.study import open_study

DATA = ["--data.count=200", "--data.size=16"]
FEW = ["--pairs=6", "--ratings=3", "--real-pairs=4", "--controls=4"]


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "phantoms"
    write_samples(folder, PHANTOMS["chest"].make(20, seed=9, size=16).images, {"model": "phantom"})
    return str(folder)


def test_make_answer_score(fakes, tmp_path, capsys):
    """A study is made, answered and scored; numbers and report are written; a CSV is merged in."""
    out = tmp_path / "study"
    assert main(["readers", "make", fakes, *DATA, *FEW, "--form", f"--out={out}"]) == 0
    assert (out / "form.html").exists()
    assert main(["readers", "score", str(out)]) == 2
    assert "has no answers yet" in capsys.readouterr().err
    study = open_study(out)
    key = {k["id"]: k for k in json.loads((out / "key.json").read_text())["items"]}
    answers = {i: key[i]["correct"] or "4" for i in study.forms}
    for item, answer in answers.items():
        AnswerBook(study).add(Answer("anna", item, answer, 1.0))
    lines = [f"{study.id},ben,{item},{answer},2,0" for item, answer in answers.items()]
    (tmp_path / "b.csv").write_text("study,reader,item,answer,seconds,changes\n" + "\n".join(lines))
    assert main(["readers", "score", str(out), str(tmp_path / "b.csv")]) == 0
    results = json.loads((out / "score.json").read_text())
    row = results["pairs"]["phantoms"]["pooled"]
    assert (row["errors"], row["n"]) == (0, 12) and 0.3 < row["high"] < 0.45  # six pairs, not twelve
    assert results["agreement"]["pair"]["value"] == 1.0
    assert "always told from real" in (out / "score.html").read_text()
    assert "phantoms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["readers", "mkae"], "Did you mean 'make'"),
        (["readers", "serve", "/nowhere"], "is not a reader study"),
        (["readers", "score", "/nowhere"], "is not a reader study"),
        (["readers", "make", "/nowhere", *DATA, *FEW], "does not exist"),
        (["readers", "make"], "sources"),
    ],
)
def test_mistakes(argv, message, capsys):
    """One sentence and exit code 2."""
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_empty_folder_and_too_few(fakes, tmp_path, capsys):
    """An empty folder of fakes, and fewer images than pairs: nothing is written."""
    (tmp_path / "empty").mkdir()
    out = tmp_path / "study"
    assert main(["readers", "make", str(tmp_path / "empty"), *DATA, *FEW, f"--out={out}"]) == 2
    assert main(["readers", "make", fakes, *DATA, "--pairs=30", f"--out={out}"]) == 2
    assert "holds 20 images" in capsys.readouterr().err and not out.exists()
