"""The page that readers see, for a server and as one file: the same text and script, two ways of keeping answers."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from verisim.data.atomic import atomic_write
from verisim.reports.html import template
from verisim.web.study import Study


@cache
def script() -> str:
    """The page's only script."""
    return files("verisim.web").joinpath("templates/reading.js").read_text()


def policy(served: bool) -> str:
    """Content-Security-Policy: this script alone, and nothing from anywhere else."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    allowed = ["default-src 'none'", f"script-src 'sha256-{digest}'", "style-src 'unsafe-inline'"]
    allowed += ["img-src 'self'", "connect-src 'self'"] if served else ["img-src data:"]
    return "; ".join([*allowed, "base-uri 'none'", "form-action 'none'"])


def page(study: Study, served: bool) -> str:
    """The page as HTML text; served=False embeds the images and keeps answers in the browser."""
    images = {} if served else {n: _data(path) for n, path in study.images.items()}
    data = {
        "served": served,
        "id": study.id,
        "items": list(study.items),
        "images": images,
    }
    forms = list(study.forms.values())
    return template("reading.html.j2", "verisim.web").render(
        title=study.title,
        served=served,
        policy=policy(served),
        pairs=forms.count("pair"),
        ratings=forms.count("rating"),
        minutes=max(1, round((6 * forms.count("pair") + 4 * forms.count("rating")) / 60)),
        study=Markup(json.dumps(data).replace("<", "\\u003c")),  # no tag can end the block early
        script=Markup(script()),
    )


def _data(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def write_form(study: Study) -> Path:
    """form.html in the study's folder: one file, without the key, for readers without a server."""
    path = study.folder / "form.html"
    atomic_write(path, page(study, served=False).encode())
    return path
