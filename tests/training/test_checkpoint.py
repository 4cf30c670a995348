"""Checkpoints: exact round trips, atomic writes, and every kind of damage found."""

import errno
import os

import pytest
import torch

from verisim.errors import CheckpointError, VerisimError
from verisim.training.checkpoint import load_state, read_metadata, save_state

STATE = {
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64)},
    "optimizer": [{0: {"m": torch.ones(2)}, 1: {"m": torch.zeros(0)}}, (1, 2.5, "x", None, True)],
    "bf16": torch.tensor([1.5], dtype=torch.bfloat16),
    "scalar": torch.tensor(2.0),
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return a == b and type(a) is type(b)


def test_round_trip_is_exact(tmp_path):
    """Tensors, integer keys, tuples and dtypes come back as they were."""
    save_state(tmp_path / "s", STATE)
    assert equal(load_state(tmp_path / "s"), STATE)


def test_shared_and_strided_tensors(tmp_path):
    """Views of one storage are saved as values; safetensors alone would refuse them."""
    base = torch.arange(12.0).reshape(3, 4)
    save_state(tmp_path / "s", {"a": base, "b": base.T, "c": base[1]})
    back = load_state(tmp_path / "s")
    assert torch.equal(back["b"], base.T) and torch.equal(back["c"], base[1])


@pytest.mark.parametrize("keep", [0, 4, 50, -1, -5])
def test_truncated_file_is_named(tmp_path, keep):
    """A file cut anywhere raises CheckpointError with its path, never a library's own error."""
    save_state(tmp_path / "s", STATE)
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=str(tmp_path / "s")):
        load_state(tmp_path / "s")


def test_every_flipped_bit_is_found(tmp_path):
    """One flipped bit in any byte of the file is an error: the hash covers tensors and skeleton."""
    save_state(tmp_path / "s", STATE)
    data = bytearray((tmp_path / "s").read_bytes())
    for i in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[i] ^= 1
        (tmp_path / "s").write_bytes(damaged)
        try:
            back = load_state(tmp_path / "s")
        except CheckpointError:
            continue
        assert equal(back, STATE), f"byte {i} changed what is loaded, unnoticed"


def test_pickle_is_refused(tmp_path):
    """A torch.save file is not opened at all."""
    torch.save({"a": 1}, tmp_path / "s.pt")
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "s.pt")


def test_unknown_objects_are_refused(tmp_path):
    """What is neither tensor nor JSON cannot get into a checkpoint."""
    with pytest.raises(CheckpointError, match="object"):
        save_state(tmp_path / "s", {"a": object()})


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    """ENOSPC while writing: one clear sentence, the earlier file intact, no half file left."""
    path = tmp_path / "s"
    save_state(path, {"a": torch.ones(3)})
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VerisimError, match="disk is full"):
        save_state(path, {"a": torch.zeros(3)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_header_is_readable_without_tensors(tmp_path):
    """Cards are read from the header alone."""
    save_state(tmp_path / "s", STATE, header={"card": "hello"})
    assert read_metadata(tmp_path / "s")["card"] == "hello"
