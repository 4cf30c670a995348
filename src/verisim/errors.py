"""Errors that a user can act on: what, where, which range is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VerisimError(Exception):
    """A problem that the user can mend. The command line prints its text alone and exits with 2."""


class RangeError(VerisimError):
    """Values outside the range that an ImageSpec promises, or not finite."""


class DataError(VerisimError):
    """A file, folder, manifest or split that cannot be used."""


class CheckpointError(VerisimError):
    """A checkpoint or weights file that is damaged or belongs to something else."""


class LossError(VerisimError):
    """The loss was not finite for too many steps in a row; `loss` is that of the last one (a tensor)."""

    def __init__(self, message: str, loss: object = None) -> None:
        super().__init__(message)
        self.loss = loss


def nearest(word: str, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' for the closest allowed word, or an empty string."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def pick(registry: dict, key: str, what: str):
    """registry[key], or a VerisimError that lists the keys and suggests the nearest one."""
    if key in registry:
        return registry[key]
    raise VerisimError(
        f"Unknown {what} '{key}'.{nearest(key, registry)} Known: {', '.join(sorted(registry))}."
    )
