"""The patch discriminator: size, field of view and score grid against their closed forms, 2D and 3D."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from verisim.errors import VerisimError
from verisim.nets.norm import GroupNorm
from verisim.nets.patch_discriminator import PatchDiscriminator, patch_side, score_grid


def closed_form(dims: int, channels: int, width: int, layers: int) -> int:
    """4^d weights per pair of channels; biases in the first and last layer; scale and shift of each norm."""
    widths = [width * min(2**k, 8) for k in range(layers + 1)]
    pairs = channels * widths[0] + sum(a * b for a, b in pairwise(widths)) + widths[-1]
    return 4**dims * pairs + widths[0] + 1 + 2 * sum(widths[1:])


@pytest.mark.parametrize(
    ("dims", "channels", "width", "layers"),
    [(2, 3, 64, 3), (2, 6, 64, 3), (2, 1, 8, 1), (2, 2, 8, 5), (3, 1, 8, 2), (3, 4, 4, 3)],
)
def test_parameters_are_those_of_the_layout(dims, channels, width, layers):
    net = PatchDiscriminator(dims, channels, width, layers)
    assert sum(p.numel() for p in net.parameters()) == closed_form(dims, channels, width, layers)


def test_parameters_are_the_published_ones():
    """The 70 x 70 discriminator of three channels, and of pix2pix, which sees six: 2.77 million."""
    counts = [sum(p.numel() for p in PatchDiscriminator(2, c).parameters()) for c in (3, 6)]
    assert counts == [2_765_633, 2_768_705]


def test_patch_sides_are_the_published_ones():
    assert [patch_side(n) for n in (1, 2, 3)] == [16, 34, 70]


@pytest.mark.parametrize(("dims", "layers", "side"), [(2, 1, 30), (2, 2, 60), (2, 3, 101), (3, 1, 22)])
def test_a_score_sees_a_patch_of_that_side(dims, layers, side):
    """Without norms, which see the whole map, the gradient of a middle score fills exactly patch_side pixels."""
    net = PatchDiscriminator(dims, 1, 2, layers)
    for k, module in enumerate(net.layers):
        if isinstance(module, GroupNorm):
            net.layers[k] = nn.Identity()
        elif isinstance(module, nn.LeakyReLU):
            net.layers[k] = nn.LeakyReLU(1.0)  # no two paths may cancel by a dead unit
    net.double()
    x = torch.randn(1, 1, *[side] * dims, dtype=torch.float64, requires_grad=True)
    scores = net(x)
    assert scores.shape == (1, 1, *score_grid((side,) * dims, layers))
    middle = tuple(n // 2 for n in scores.shape[2:])
    scores[(0, 0, *middle)].backward()
    seen = x.grad[0, 0].abs() > 0
    for axis in range(dims):
        line = seen.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
        assert int(line.max() - line.min()) + 1 == patch_side(layers) and len(line) == patch_side(layers)


def test_odd_sizes_and_axes():
    """Sides that differ and do not divide: the grid is what was promised."""
    for size, layers in (((17, 30), 1), ((13, 14, 12), 2), ((25, 24), 3)):
        net = PatchDiscriminator(len(size), 2, 2, layers)
        assert net(torch.zeros(3, 2, *size)).shape == (3, 1, *score_grid(size, layers))


def test_a_score_does_not_depend_on_the_batch():
    """Group norm: an image scores the same alone and beside others, so real and made need not be mixed."""
    net = PatchDiscriminator(2, 1, 8, 2)
    x = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


@pytest.mark.parametrize(
    ("size", "layers", "text"),
    [
        ((16, 16), 3, "3 layers needs sides of 24 pixels .* 16x16: 1 to 2 fit.*discriminator_layers"),
        ((32, 32, 5), 1, "sides of 6 pixels.*32x32x5: a side of 6 pixels is the least"),
        ((32, 32), 0, "at least 1 layer"),
    ],
)
def test_images_without_a_score_are_refused(size, layers, text):
    with pytest.raises(VerisimError, match=text):
        score_grid(size, layers)
    assert score_grid((24, 24), 3) == (1, 1)
