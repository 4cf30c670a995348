"""Seeds derived from meaning: (seed, rank, step) -> one integer, the same on every machine.

Reseeding at each step from its own coordinates makes resuming exact without saving any generator
state (idea: edm2's training loop).
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """63-bit seed from any tuple of integers and strings; different tuples give independent seeds."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch.Generator seeded by derive_seed(*parts)."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))
