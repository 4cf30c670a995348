"""The study's folder, answers and form: nothing gives the key away, nothing odd gets in, nothing is lost."""

import json
import re
import sqlite3

import pytest
from PIL import Image

from verisim.errors import DataError, VerisimError
from verisim.metrics.reading import Answer
from verisim.web.answers import AnswerBook, Conflict, check_answer, merged, read_csv, reader_name
from verisim.web.pages import page, write_form
from verisim.web.study import open_study, read_key, write_study

HEAD = "study,reader,item,answer,seconds,changes\n"


def test_round_trip(study, sheets):
    """Items in order, images exact, the key as it was."""
    again = open_study(study.folder)
    assert again == study and list(again.forms) == [s.item.id for s in sheets]
    items, key = read_key(again)
    assert items == [s.item for s in sheets] and key["settings"] == {"seed": 7}
    first = Image.open(again.images[again.items[0]["images"][0]])
    assert first.tobytes() == sheets[0].pictures[0].numpy().tobytes()


def test_readers_see_no_hint(study, sheets):
    """Pages, study.json and image files hold no source, no side and no generator; all images say the same."""
    form = write_form(study).read_text()
    for text in (page(study, served=True), form, (study.folder / "study.json").read_text()):
        assert "secret" not in text and "gan" not in re.sub(r"[A-Za-z0-9+/=]{100,}", "", text)
        assert "correct" not in json.dumps(
            re.findall(r'<script type="application/json".*?</script>', text, re.S)
        )
    notes = {tuple(sorted(Image.open(p).info.items())) for p in study.images.values()}
    assert len(notes) == 1 and "may be a synthetic" in str(notes)
    assert len({Image.open(p).mode for p in study.images.values()}) == 1


@pytest.mark.parametrize("served", [True, False])
def test_pages_load_nothing_from_elsewhere(study, served):
    """No address of another host; the only script is the one that the policy names."""
    text = page(study, served)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text) and "http" not in re.sub(
        r"http-equiv", "", text
    )
    assert text.count("<script>") == 1
    assert served or text.count("data:image/png;base64,") == len(study.images)


def test_hostile_title_is_text(tmp_path, sheets):
    """A title with tags stays text, in HTML and in the data block."""
    study = write_study(tmp_path / "s", sheets, "</script><script>alert(1)</script>", {})
    assert "<script>alert" not in page(study, True)


def test_taken_folder_is_refused(study, sheets, tmp_path):
    """A study never overwrites answers of another one, nor anything else."""
    with pytest.raises(DataError, match="not an empty folder"):
        write_study(study.folder, sheets, "x", {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="not an empty folder"):
        write_study(tmp_path / "file", sheets, "x", {})


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "study.json").unlink(), "is not a reader study. Make one with"),
        (lambda f: (f / "study.json").write_text("{"), "damaged"),
        (lambda f: (f / "study.json").write_text("[1]"), "is not a reader study"),
        (lambda f: edit(f / "study.json", '"form": "pair"', '"form": "quiz"'), "its items cannot be read"),
        (lambda f: edit(f / "study.json", '"pair-001"', '"pair-000"'), "its items cannot be read"),
        (lambda f: next(iter((f / "images").iterdir())).unlink(), "missing or was altered"),
        (lambda f: next(iter((f / "images").iterdir())).write_bytes(b"x"), "missing or was altered"),
    ],
)
def test_damaged_study(study, damage, message):
    """Every damage: one sentence that names the file."""
    damage(study.folder)
    with pytest.raises(DataError, match=message):
        open_study(study.folder)


def test_image_names_cannot_leave_the_folder(study):
    """A study.json that names a file outside is refused, so that no server gives it away."""
    name = study.items[0]["images"][0]
    edit(study.folder / "study.json", name, "../key.json")
    with pytest.raises(DataError, match="no image of it"):
        open_study(study.folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda k: k.unlink(), "key.json is missing"),
        (lambda k: edit(k, '"correct": "left"', '"correct": "up"'), "does not list the items"),
        (lambda k: edit(k, '"pair-001"', '"pair-999"'), "does not list the items"),
        (lambda k: edit(k, '"study": "', '"study": "0'), "belongs to another study"),
        (lambda k: edit(k, '"kind"', '"kin"'), "is damaged"),
    ],
)
def test_damaged_key(study, damage, message):
    """A key that is missing, altered or another study's scores nothing."""
    damage(study.folder / "key.json")
    with pytest.raises(DataError, match=message):
        read_key(study)


@pytest.mark.parametrize("name", ["Anna", "Dr. Müller-Lüdenscheidt", "reader_2", "李 医生", "7"])
def test_good_names(name):
    """Names of people, in any alphabet; spaces are tidied."""
    assert reader_name(f"  {name} ") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        ".hidden",
        "=1+1",
        "a\x00b",
        "a\nb;",
        "<b>",
        "x" * 41,
        None,
        5,
    ],
)
def test_bad_names(name):
    """Path characters, control characters, formulas, tags, nothing: refused with the rule."""
    with pytest.raises(VerisimError, match="begins with a letter or digit"):
        reader_name(name)


GOOD = {"reader": "anna", "item": "pair-000", "answer": "left", "seconds": 1.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": "pair-777"}, "no item 'pair-777'"),
        ({"item": ["pair-000"]}, "no item"),
        ({"answer": "up"}, "allowed are left, right"),
        ({"answer": "3"}, "allowed are left, right"),
        ({"item": "rating-000", "answer": "6"}, "allowed are 1, 2, 3, 4, 5"),
        ({"seconds": -1}, "from 0 to 86400"),
        ({"seconds": "nan"}, "from 0 to 86400"),
        ({"seconds": True}, "from 0 to 86400"),
        ({"seconds": None}, "from 0 to 86400"),
        ({"changes": 1e9}, "number of changes"),
    ],
)
def test_bad_answers(study, change, message):
    """Whatever comes from outside is checked before it is kept."""
    assert check_answer(study, GOOD, "x") == Answer("anna", "pair-000", "left", 1.5)
    with pytest.raises(VerisimError, match=message):
        check_answer(study, {**GOOD, **change}, "x")


def test_answers_are_kept_once(study):
    """The same again is known; another answer is a conflict unless it is a correction, which is counted."""
    book = AnswerBook(study)
    left, right = Answer("Anna", "pair-000", "left", 1.0), Answer("anna", "pair-000", "right", 9.0)
    assert [book.add(left), book.add(left)] == ["stored", "known"]
    with pytest.raises(Conflict, match="answered 'left' before; the first answer stays"):
        book.add(right)
    assert book.of("ANNA") == {"pair-000": "left"}
    assert book.add(right, replace=True) == "changed"
    assert AnswerBook(study).all() == [
        Answer("Anna", "pair-000", "right", 1.0, 1)
    ]  # seconds of the first look


def test_tampered_answers_are_noticed(study):
    """Rows that no reader can have given, a file that is none, answers of another study."""
    book = AnswerBook(study)
    book.add(Answer("Anna", "pair-000", "left", 1.0))
    with sqlite3.connect(book.path) as db:
        db.execute("UPDATE answers SET answer = 'up'")
    with pytest.raises(VerisimError, match="row 1: 'up' is no answer"):
        book.all()
    with sqlite3.connect(book.path) as db:
        db.execute("UPDATE study SET id = 'other'")
    with pytest.raises(DataError, match="answers of another study"):
        book.all()
    book.path.write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(DataError, match="not a database"):
        book.all()


def test_csv(study, tmp_path):
    """What form.html saves is read back; each odd line is named."""
    file = tmp_path / "answers.csv"
    file.write_text(
        HEAD + f'"{study.id}","anna","pair-000","left","1.5","0"\r\n{study.id},anna,rating-001,4,2,1\r\n'
    )
    assert read_csv(file, study) == [
        Answer("anna", "pair-000", "left", 1.5),
        Answer("anna", "rating-001", "4", 2, 1),
    ]
    for text, message in (
        ("reader,item\n", "lacks the column"),
        (HEAD + "abc,anna,pair-000,left,1,0\n", "line 2: an answer to another study"),
        (HEAD + f"{study.id},../a,pair-000,left,1,0\n", "begins with a letter"),
        (HEAD + f"{study.id},anna,pair-000,left,soon,0\n", "line 2: the reading time"),
        (HEAD + f"{study.id},anna\n", "line 2: there is no item"),
        (HEAD + f'{study.id},"anna\n', "cannot be read as CSV"),
    ):
        file.write_text(text)
        with pytest.raises(VerisimError, match=message):
            read_csv(file, study)
    with pytest.raises(DataError, match="cannot be read"):
        read_csv(tmp_path / "none.csv", study)


def test_merging():
    """Twice the same file counts once; a later state with a correction wins; two people of one name are an error."""
    a = Answer("Anna", "p", "left", 1.0)
    assert merged([a, Answer("anna", "p", "left", 1.0)]) == [a]
    late = Answer("anna", "p", "right", 1.0, 1)
    assert merged([a, late]) == merged([Answer("Anna", "p", "right", 1.0, 1), a])
    with pytest.raises(DataError, match="answered p twice, 'left' and 'right'"):
        merged([a, Answer("anna", "p", "right", 3.0)])
