"""What readers said: checked, kept in SQLite before anything is confirmed, read back from there or from CSV."""

from __future__ import annotations

import csv
import math
import re
import sqlite3
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from verisim.errors import DataError, VerisimError
from verisim.metrics.reading import FORMS, Answer
from verisim.web.study import Study

COLUMNS = ("study", "reader", "item", "answer", "seconds", "changes")
LONGEST = 40  # characters of a reader's name
SLOWEST = 86_400.0  # seconds; a longer reading time is no reading time
NAME = re.compile(r"[^\W_][\w .\-]*")  # letters, digits, space, dot, hyphen, underscore


class Conflict(VerisimError):
    """The item was answered before, and differently."""


def reader_name(text: Any) -> str:
    """A reader's name in one spelling, or VerisimError: it is printed, listed and exported, so no odd characters."""
    name = " ".join(unicodedata.normalize("NFC", text).split()) if isinstance(text, str) else ""
    if not (0 < len(name) <= LONGEST and NAME.fullmatch(name)):
        raise VerisimError(
            f"A reader's name has 1 to {LONGEST} letters, digits, spaces, dots, hyphens or underscores, and "
            f"begins with a letter or digit."
        )
    return name


def check_answer(study: Study, raw: Mapping[str, Any], where: str) -> Answer:
    """An answer from outside, or VerisimError naming what is wrong with it."""
    item = raw.get("item")
    if not isinstance(item, str) or item not in study.forms:
        raise VerisimError(f"{where}: there is no item '{str(item)[:40]}' in this study.")
    allowed = FORMS[study.forms[item]]
    answer = raw.get("answer")
    if answer not in allowed:
        raise VerisimError(
            f"{where}: '{str(answer)[:40]}' is no answer to {item}; allowed are {', '.join(allowed)}."
        )
    seconds = _number(raw.get("seconds"), SLOWEST, f"{where}: the reading time of {item}")
    changes = _number(raw.get("changes") or 0, 1000, f"{where}: the number of changes of {item}")
    return Answer(reader_name(raw.get("reader")), item, str(answer), seconds, int(changes))


def _number(value: Any, most: float, what: str) -> float:
    try:
        number = (
            float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        )
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise VerisimError(f"{what} is '{str(value)[:40]}'; it must be a number from 0 to {most:g}.")
    return number


class AnswerBook:
    """answers.sqlite: one row per reader and item, on disk before add() returns."""

    def __init__(self, study: Study) -> None:
        self.study, self.path = study, study.folder / "answers.sqlite"

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on the disk afterwards, or nothing."""
        try:
            with closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as db:
                db.execute("PRAGMA synchronous = FULL")
                db.execute("BEGIN IMMEDIATE")
                self._prepare(db)
                yield db
                db.execute("COMMIT")  # without it, closing rolls back
        except sqlite3.Error as e:
            raise DataError(
                f"{self.path}: {e}. Restore the file or its rights, or make room on the disk."
            ) from e

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Tables of a new file; DataError for the answers of another study."""
        db.execute("CREATE TABLE IF NOT EXISTS study (id TEXT NOT NULL)")
        db.execute(
            "CREATE TABLE IF NOT EXISTS answers (reader TEXT NOT NULL, folded TEXT NOT NULL, item TEXT NOT NULL, "
            "answer TEXT NOT NULL, seconds REAL NOT NULL, changes INTEGER NOT NULL, at REAL NOT NULL, "
            "PRIMARY KEY (folded, item))"
        )
        known = [r[0] for r in db.execute("SELECT id FROM study")]
        if not known:
            db.execute("INSERT INTO study VALUES (?)", (self.study.id,))
        elif known != [self.study.id]:
            raise DataError(f"{self.path} holds the answers of another study. Move it away.")

    def add(self, new: Answer, replace: bool = False) -> str:
        """'stored', 'known' (the same again) or 'changed'; Conflict if another answer is there already.

        replace: a correction by the reader, which is counted.
        """
        place = (new.reader.casefold(), new.item)
        with self._open() as db:
            old = db.execute("SELECT answer FROM answers WHERE folded = ? AND item = ?", place).fetchone()
            if old is None:
                row = (new.reader, *place, new.answer, new.seconds, 0, time.time())
                db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                return "stored"
            if old[0] == new.answer:
                return "known"
            if not replace:
                raise Conflict(f"{new.item} was answered '{old[0]}' before; the first answer stays.")
            change = "UPDATE answers SET answer = ?, changes = changes + 1 WHERE folded = ? AND item = ?"
            db.execute(change, (new.answer, *place))
            return "changed"

    def of(self, reader: str) -> dict[str, str]:
        """Item -> answer of one reader."""
        with self._open() as db:
            rows = db.execute(
                "SELECT item, answer FROM answers WHERE folded = ?", (reader.casefold(),)
            ).fetchall()
        return dict(rows)

    def all(self) -> list[Answer]:
        """Every answer, checked again: a file can be edited."""
        if not self.path.exists():
            return []
        with self._open() as db:
            rows = db.execute(
                "SELECT reader, item, answer, seconds, changes FROM answers ORDER BY at"
            ).fetchall()
        named = [dict(zip(COLUMNS[1:], row)) for row in rows]
        return [check_answer(self.study, r, f"{self.path}, row {i}") for i, r in enumerate(named, start=1)]


def read_csv(path: Path | str, study: Study) -> list[Answer]:
    """Answers that form.html saved; DataError or VerisimError naming file and line for anything odd."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            rows = csv.DictReader(f, strict=True)
            lacking = [c for c in COLUMNS if c not in (rows.fieldnames or ())]
            if lacking:
                raise DataError(
                    f"{path} lacks the column(s) {', '.join(lacking)}: not a file that form.html saved."
                )
            found = []
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if row["study"] != study.id:
                    raise DataError(
                        f"{where}: an answer to another study ({str(row['study'])[:40]}, this is {study.id})."
                    )
                found.append(check_answer(study, row, where))
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path} cannot be read as CSV ({e}).") from e


def merged(answers: Iterable[Answer]) -> list[Answer]:
    """One answer per reader and item; the same twice counts once, two different ones are an error."""
    names: dict[str, str] = {}
    found: dict[tuple[str, str], Answer] = {}
    for a in answers:
        folded = a.reader.casefold()
        name = names.setdefault(folded, a.reader)
        old = found.setdefault((folded, a.item), Answer(name, a.item, a.answer, a.seconds, a.changes))
        if old.answer != a.answer and old.changes != a.changes:  # a correction: the later state counts
            found[folded, a.item] = max(
                old, Answer(name, a.item, a.answer, a.seconds, a.changes), key=_changes
            )
        elif old.answer != a.answer:
            raise DataError(
                f"Reader '{name}' answered {a.item} twice, '{old.answer}' and '{a.answer}'. Score one of the "
                f"files only, or give two people different names."
            )
    return list(found.values())


def _changes(answer: Answer) -> int:
    return answer.changes
