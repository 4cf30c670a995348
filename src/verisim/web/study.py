"""The folder of a blinded reading.

study.json      what readers see: title, items, file names of images; no hint at where an image comes from
images/*.png    named after their own contents, all with the same text inside
key.json        which image is which; no page and no server ever reads it
answers.sqlite  what readers said; appears with the first reader
README.txt      how to run it
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from verisim.data.atomic import atomic_write
from verisim.errors import DataError
from verisim.metrics.reading import FORMS, Item

if TYPE_CHECKING:  # serving pages needs no tensors
    from verisim.tasks.reading import Sheet

SCHEMA, KEY_SCHEMA = "verisim.study/1", "verisim.study-key/1"
COMMENT = "from a blinded reading: may be a synthetic image, not a patient; not for diagnosis"
README = """A blinded reading: {items} items, {generators} generator(s).

verisim readers serve {folder}      then open the address it prints, in a browser on this machine
verisim readers score {folder}      error rates, ratings and agreement, from answers.sqlite
verisim readers score {folder} answers-*.csv      the same from the files that form.html saves

Readers must not see key.json. Where they work on another machine, give them form.html alone
('verisim readers make ... --form' writes it).

The images are partly synthetic and partly of real patients, and do not say which: treat the whole folder
like the real images, use it for this reading only, and never for diagnosis. key.json tells them apart.
"""


@dataclass(frozen=True)
class Study:
    """What readers may see."""

    folder: Path
    id: str  # first 16 hex digits of the SHA-256 of study.json
    title: str
    items: tuple[dict[str, Any], ...]  # {"id", "form", "images": [file name, ...]} in order

    @property
    def forms(self) -> dict[str, str]:
        """Item -> form."""
        return {i["id"]: i["form"] for i in self.items}

    @property
    def images(self) -> dict[str, Path]:
        """File name -> path, of all images: the only files that a server gives away."""
        return {n: self.folder / "images" / n for i in self.items for n in i["images"]}


def write_study(folder: Path, sheets: Sequence[Sheet], title: str, facts: Mapping[str, Any]) -> Study:
    """Write sheets into an empty or new folder; `facts` (JSON) go into the key. DataError if it is taken."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} is not an empty folder. Choose another --out, so that no answers are mixed up."
        )
    items, keys = [], []
    for sheet in sheets:
        names = [_write_image(folder / "images", p) for p in sheet.pictures]
        items.append({"id": sheet.item.id, "form": sheet.item.form, "images": names})
        keys.append({**asdict(sheet.item), "sources": list(sheet.sources)})
    shown = json.dumps({"schema": SCHEMA, "title": title, "items": items}, indent=1).encode()
    key = {"schema": KEY_SCHEMA, "study": hashlib.sha256(shown).hexdigest(), "items": keys, **facts}
    generators = len({k["name"] for k in keys if k["kind"] == "generator"})
    text = README.format(items=len(items), generators=generators, folder=folder.name)
    atomic_write(folder / "README.txt", text.encode())
    atomic_write(folder / "key.json", json.dumps(key, indent=1).encode())
    atomic_write(folder / "study.json", shown)  # last: a folder with it is whole
    return open_study(folder)


def _write_image(folder: Path, picture: Any) -> str:
    """One (C, H, W) uint8 picture as PNG, named after its contents; returns the name."""
    array = picture[0].numpy() if len(picture) == 1 else picture.permute(1, 2, 0).contiguous().numpy()
    info = PngInfo()
    info.add_text("Comment", COMMENT)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", pnginfo=info)
    name = f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:20]}.png"
    atomic_write(folder / name, buffer.getvalue())
    return name


def open_study(folder: Path | str) -> Study:
    """Read and verify a study: DataError for none, a damaged one, or an image that is missing or altered."""
    folder = Path(folder)
    raw, data = _read_json(
        folder / "study.json", SCHEMA, "a reader study. Make one with 'verisim readers make'"
    )
    try:
        items = tuple(data["items"])
        ok = items and all(
            isinstance(i["id"], str)
            and len(i["images"]) == (2 if i["form"] == "pair" else 1)
            and FORMS[i["form"]]
            for i in items
        )
        title = str(data["title"])
    except (KeyError, TypeError):
        ok, items, title = False, (), ""
    if not ok or len({i["id"] for i in items}) < len(items):
        raise DataError(
            f"{folder / 'study.json'} is damaged: its items cannot be read. Make the study again."
        )
    study = Study(folder, hashlib.sha256(raw).hexdigest()[:16], title, items)
    for name, path in study.images.items():
        if "/" in name or "\\" in name or name.startswith("."):
            raise DataError(
                f"{folder / 'study.json'} is damaged: '{name}' is no image of it. Make the study again."
            )
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest()[:20] != path.stem:
            raise DataError(f"{path} is missing or was altered. Restore it, or make the study again.")
    return study


def read_key(study: Study) -> tuple[list[Item], dict[str, Any]]:
    """The key's items in order and the whole key; DataError if it belongs to another study or was altered."""
    path = study.folder / "key.json"
    _, key = _read_json(path, KEY_SCHEMA, "the key of a reader study. Without it nothing can be scored")
    if str(key.get("study", ""))[:16] != study.id:
        raise DataError(f"{path} belongs to another study, or study.json was changed. Restore both.")
    try:
        items = [Item(k["id"], k["form"], k["kind"], k["name"], k["correct"]) for k in key["items"]]
    except (KeyError, TypeError) as e:
        raise DataError(f"{path} is damaged ({e}). Restore it.") from e
    odd = [i.id for i in items if i.form == "pair" and i.correct not in FORMS["pair"]]
    if odd or {i.id: i.form for i in items} != study.forms:
        raise DataError(
            f"{path} does not list the items of study.json{f' ({odd[0]})' if odd else ''}. Restore it."
        )
    return items, key


def _read_json(path: Path, schema: str, what: str) -> tuple[bytes, dict[str, Any]]:
    """The bytes and contents of a JSON file of this schema."""
    if not path.is_file():
        raise DataError(
            f"{path.parent} is not {what}."
            if path.name == "study.json"
            else f"{path} is missing: it is {what}."
        )
    raw = path.read_bytes()
    try:
        data = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise DataError(f"{path} is damaged ({e}). Restore it.") from e
    if not isinstance(data, dict) or data.get("schema") != schema:
        raise DataError(f"{path} is not {what}.")
    return raw, data
