"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from verisim.errors import DataError


def atomic_write(path: Path | str, data: bytes) -> None:
    """data into path by way of a temporary file beside it: a reader sees the old file or the new one.

    Errors: DataError for a full disk or a folder that cannot be written; no half file stays behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explain(error, path, len(data)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _explain(error: OSError, path: Path, size: int) -> DataError:
    """One sentence for what went wrong while writing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = next((p for p in path.parents if p.exists()), Path("."))
        free = shutil.disk_usage(place).free
        return DataError(f"{path}: the disk is full ({size:,} bytes to write, {free:,} free). Nothing was left "
                         "half-written. Free some space or choose another folder.")  # fmt: skip
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DataError(
            f"{path}: this folder cannot be written to. Choose another one, or change its rights."
        )
    return DataError(f"{path}: could not be written ({error.strerror or error}). Choose another folder.")
