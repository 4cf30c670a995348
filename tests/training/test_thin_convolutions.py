"""3D convolutions over fewer planes than taps: right gradients in bfloat16 on any CPU."""

import copy

import pytest
import torch
from torch import nn

from verisim.training.thin_convolutions import guard_thin_convolutions


def weight_gradients(net: nn.Module, x: torch.Tensor, bf16: bool) -> torch.Tensor:
    torch.full((1 << 20,), 1e30)  # freed at once: what a kernel that reads unwritten memory may find there
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = net(x)
    y.backward(torch.ones_like(y))
    (weight,) = (p for p in net.parameters() if p.ndim == 5)
    found, weight.grad = weight.grad, None
    return found


def error(planes: int, kernel: int = 3) -> float:
    """Largest relative error of the weight gradient in bfloat16, of twenty tries."""
    torch.manual_seed(0)
    conv = nn.Conv3d(8, 8, kernel, padding=kernel // 2)
    guard_thin_convolutions(conv)
    x = torch.randn(3, 8, planes, 3, 4)
    exact = weight_gradients(conv, x, False)
    return max(float((weight_gradients(conv, x, True) - exact).abs().max()) for _ in range(20)) / float(
        exact.abs().max()
    )


@pytest.mark.parametrize(("planes", "kernel"), [(1, 3), (2, 3), (2, 5), (4, 5)])
def test_thin_images_have_float32_gradients(planes, kernel):
    assert error(planes, kernel) < 1e-5


def test_other_images_stay_in_bfloat16():
    assert 1e-4 < error(3) < 1e-2
    conv = nn.Conv3d(2, 2, 3, padding=1)
    guard_thin_convolutions(conv)
    with torch.autocast("cpu", torch.bfloat16):
        assert {conv(torch.ones(1, 2, d, 4, 4)).dtype for d in (1, 2, 3)} == {torch.bfloat16}


def test_copies_and_spectral_norm_keep_their_own_weights():
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv3d(2, 2, 3, padding=1))
    guard_thin_convolutions(conv)
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        twin.bias.fill_(100.0)
    x = torch.ones(1, 2, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(twin(x).mean()) > 90 > float(conv(x).mean())
