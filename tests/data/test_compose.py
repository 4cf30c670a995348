"""Collections put together: labels as stated or unknown, copies once, people whole in one split."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from verisim.cli.main import main
from verisim.data.compose import compose
from verisim.data.compose_plan import read_plan
from verisim.data.compose_write import write_composition
from verisim.data.folder import load_images
from verisim.errors import DataError

PLAN = """
labels: [effusion, nodule, device]
collections:
  nih:
    folder: a
    listed: {column: findings, separator: "|", names: {Effusion: effusion, Nodule: nodule}, others: absent}
  clinic:
    folder: b
    columns: {Pleural Effusion: effusion, Line: device}
    text: report
"""


def picture(seed, size=24):
    return np.random.default_rng(seed).integers(0, 255, (size, size), dtype=np.uint8)


def folder(root, rows, columns, pictures):
    root.mkdir()
    for row, p in zip(rows, pictures):
        if p is not None:
            Image.fromarray(p).save(root / row[0])
    with open(root / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([columns, *rows])


@pytest.fixture
def plan(tmp_path):
    """nih: a1 a2 of patient 1 (train), a3 of 2 (test). clinic: b1 = a1 (another file type), b2 of 9, b3 broken."""
    folder(
        tmp_path / "a",
        [
            ("a1.png", "1", "train", "Effusion|Nodule"),
            ("a2.png", "1", "train", "No Finding"),
            ("a3.png", "2", "test", ""),
        ],
        ("image", "patient", "split", "findings"),
        [picture(1), picture(2), picture(3)],
    )
    folder(
        tmp_path / "b",
        [
            ("b1.tif", "7", "test", "0", "-1", "Two\nlines,  here"),
            ("b2.png", "7", "test", "1", "1", ""),
            ("b3.png", "8", "train", "1", "", "x"),
        ],
        ("image", "patient", "split", "Pleural Effusion", "Line", "report"),
        [picture(1), picture(5), None],
    )
    (tmp_path / "b" / "b3.png").write_bytes(b"not a picture")
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path / "plan.yaml"


def test_what_is_not_stated_is_unknown(plan):
    """Golden: listed with others absent, empty cells, uncertain cells, labels that a collection does not have."""
    rows = {r.entry.name: r for r in compose(read_plan(plan), progress=False).rows}
    assert rows["a2.png"].labels == {"effusion": 0, "nodule": 0}  # device: never stated by nih
    assert rows["a3.png"].labels == {}  # an empty cell says nothing, not "absent"
    assert rows["b2.png"].labels == {"effusion": 1, "device": 1}


def test_copies_are_dropped_and_merged(plan):
    """Same pixels in another file type: the first stays, takes over the text, and a contradiction is unknown."""
    found = compose(read_plan(plan), progress=False)
    assert found.dropped == (("clinic/b1.tif", "nih/a1.png"),)
    first = found.rows[0]
    assert first.labels == {"nodule": 1} and found.conflicts == 1 and first.text == "Two lines, here"
    assert [n for n, _ in found.unreadable] == ["clinic/b3.png"]


def test_nobody_is_in_two_splits(plan):
    """Patient 1 (train) and 7 (test) share an image: one person, wholly in test; the others stay."""
    found = compose(read_plan(plan), progress=False)
    by_name = {r.entry.name: r for r in found.rows}
    assert {by_name[n].patient for n in ("a1.png", "a2.png", "b2.png")} == {"nih/1"}
    assert {by_name[n].split for n in ("a1.png", "a2.png", "b2.png", "a3.png")} == {
        "test"
    } and found.moved == 2


def test_near_copies_only_if_asked(plan):
    """A copy with slightly other grey values is found by its thumbnail, only with near: true; a different one never."""
    smooth = np.add.outer(np.arange(24), 3 * np.arange(24)).astype(np.uint8)
    Image.fromarray(smooth).save(plan.parent / "a" / "a3.png")
    Image.fromarray(smooth + (picture(0) > 200)).save(plan.parent / "b" / "b2.png")
    assert len(compose(read_plan(plan), progress=False).dropped) == 1
    plan.write_text(PLAN + "near: true\n")
    assert ("clinic/b2.png", "nih/a3.png") in compose(read_plan(plan), progress=False).dropped


def test_written_folder_is_an_ordinary_one(plan, tmp_path, capsys):
    """The command writes links and a manifest that the loader takes; again it changes nothing; copies stand alone."""
    out = tmp_path / "all"
    for _ in range(2):
        assert main(["data", "compose", str(plan), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "4 images of 2 people" in text and "effusion: 1 present, 1 absent, 2 unknown" in text
    assert (out / "nih" / "a1.png").is_symlink()
    lines = list(csv.DictReader(open(out / "manifest.csv")))
    assert [r["effusion"] for r in lines] == ["", "0", "", "1"] and lines[0]["split"] == "test"
    data = load_images(out, 16, text="text", split=None)["all"]
    assert sorted(data.texts) == ["", "", "", "Two lines, here"]
    assert json.loads((out / "composed.json").read_text())["dropped_copies"] == [
        ["clinic/b1.tif", "nih/a1.png"]
    ]
    copied = tmp_path / "copied"
    write_composition(compose(read_plan(plan), progress=False), copied, copy=True)
    assert (
        not (copied / "nih" / "a1.png").is_symlink() and len(load_images(copied, 16, split=None)["all"]) == 4
    )
    (out / "manifest.csv").write_text("image\nother.png\n")
    with pytest.raises(DataError, match="another manifest"):
        write_composition(compose(read_plan(plan), progress=False), out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("labels:", "lables:"), r"unknown key 'lables'.*Did you mean 'labels'"),
        (("folder: b", "fodler: b"), r"clinic: it needs 'folder:'"),
        (("Line: device", "Line: devise"), r"label 'devise' is not possible.*Did you mean 'device'"),
        (("Line: device", "Lime: device"), r"no column 'Lime'.*Did you mean 'Line'"),
        (("others: absent", "others: gone"), r"others is 'gone'; it must be unknown or absent"),
        (("clinic:", "'../x':"), r"becomes a folder"),
        (("text: report", "where: {Line: [7]}"), r"'where' leaves none of 3"),
        (("device]", "image, device]"), r"label 'image' is not possible"),
        (("column: findings, ", ""), r"listed: it needs 'column:'"),
    ],
)
def test_bad_plans(plan, change, message):
    """Each mistake in the plan is one sentence that names it."""
    plan.write_text(PLAN.replace(*change))
    with pytest.raises(DataError, match=message):
        compose(read_plan(plan), progress=False)


def test_no_plan_no_collections(tmp_path):
    """A missing file, YAML with code, an empty plan."""
    with pytest.raises(DataError, match="no such file"):
        read_plan(tmp_path / "x.yaml")
    for text, message in (
        ("a: !!python/object:os.system {}", "not plain YAML"),
        ("labels: [a]", "must hold"),
    ):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(DataError, match=message):
            read_plan(tmp_path / "x.yaml")
