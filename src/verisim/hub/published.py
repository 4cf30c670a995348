"""Weights that come with verisim: files named ID.SIZEpx.safetensors, for `verisim sample ID`."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from verisim.errors import VerisimError


def published_weights() -> dict[str, Path]:
    """{name, e.g. "X-D-fix.32px": file} of all weights that come with verisim."""
    with as_file(files("verisim.hub") / "published") as folder:
        found = sorted(folder.glob("*.safetensors"))
    return {f.name.removesuffix(".safetensors"): f for f in found}


def find_published(name: str) -> Path | None:
    """The file that a recipe id or a full name (any case) means; None if there is none.

    Raises VerisimError for a recipe with weights of several sizes.
    """
    wanted, known = name.lower(), published_weights()
    mine = [k for k in known if wanted in (k.lower(), k.rpartition(".")[0].lower())]
    if len(mine) > 1:
        raise VerisimError(f"Weights of '{name}' come in several sizes: {', '.join(mine)}. Name one of them.")
    return known[mine[0]] if mine else None
