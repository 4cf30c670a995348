"""torch.compile for a model's network, on request."""

from __future__ import annotations

import torch
from torch import nn

from verisim.errors import VerisimError, pick


def compile_network(model: nn.Module, backend: str) -> None:
    """Compile what models call as a whole, their `net`, in place: parameters and checkpoints keep their names.

    Compiling happens in the first steps. Numbers differ from those of the plain network by rounding. Parts of a network
    that a model calls by themselves (an encoder, a decoder) stay as they are.
    """
    names = torch.compiler.list_backends(exclude_tags=())
    pick({n: n for n in names}, backend, "backend of torch.compile")
    net = model.net
    assert isinstance(net, nn.Module)
    if type(net).__module__.startswith("torch."):
        raise VerisimError(
            f"torch.compile passes over a network that is a plain {type(net).__name__}. Leave out --training.compile."
        )
    net.compile(backend=backend)


def compiler_failed(error: Exception, backend: str) -> VerisimError | None:
    """What to tell the user where torch.compile failed; None for another error."""
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return None
    first = str(error).strip().splitlines()[0]
    return VerisimError(
        f"torch.compile with backend {backend} failed: {first} Leave out --training.compile, or install a C++ compiler."
    )
