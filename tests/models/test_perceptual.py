"""Distance of feature maps: what is exactly zero, what grows, which images are farther than others."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.spec import Images, ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.metrics.features import domain_features, save_features
from verisim.models.autoencoders.perceptual import FLOOR, perceptual_distance, squared_distance, unit

SIZES = {2: (32, 32), 3: (16, 16, 16)}


def balls(dims: int, n: int = 6) -> Tensor:
    """Striped balls at random places on a black ground, (n, 1, *S)."""
    g = torch.Generator().manual_seed(0)
    axes = [torch.linspace(-1, 1, s) for s in SIZES[dims]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centres = torch.rand(n, dims, *[1] * dims, generator=g) - 0.5
    r = (grid - centres).square().sum(1).sqrt()[:, None]
    return torch.where(r < 0.5, 0.4 * torch.cos(20 * r) + 0.2, -1.0)


def blurred(x: Tensor, times: int) -> Tensor:
    """Mean over 3 pixels per axis, edges repeated."""
    dims = x.ndim - 2
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[dims]
    for _ in range(times):
        x = pool(F.pad(x, [1] * 2 * dims, mode="replicate"), 3, 1)
    return x


@pytest.fixture(scope="module")
def domain_file(tmp_path_factory):
    """A domain network of 2D images with one channel."""
    x = torch.cat([balls(2, 20), blurred(balls(2, 20), 2)])
    path = tmp_path_factory.mktemp("net") / "domain.safetensors"
    save_features(domain_features(Images(x, ImageSpec(SIZES[2])), steps=5), path)
    return path


@pytest.fixture(params=["random 2D", "random 3D", "file"])
def distance(request, domain_file):
    """Each kind of distance with images that it takes."""
    dims = 3 if request.param.endswith("3D") else 2
    network = str(domain_file) if request.param == "file" else "random"
    return perceptual_distance(network, ImageSpec(SIZES[dims])), balls(dims)


def test_equal_images_are_at_zero_and_order_does_not_count(distance):
    d, x = distance
    y = blurred(x, 2)
    assert torch.equal(d(x, x), torch.zeros(len(x)))
    torch.testing.assert_close(d(x, y), d(y, x), rtol=1e-4, atol=1e-6)
    assert d(x, y).shape == (6,) and float(d(x, y).min()) > 0 and float(d(x, -x).max()) <= 4


def test_it_grows_with_blur_and_another_image_is_farther(distance):
    """Blur once, twice, four times; control: another image of the set is farther than any blurred one."""
    d, x = distance
    found = [float(d(blurred(x, k), x).mean()) for k in (0, 1, 2, 4)]
    assert found == sorted(found) and found[0] == 0 < found[1]
    assert float(d(x.roll(1, 0), x).mean()) > 1.5 * found[-1]


@pytest.mark.parametrize("dims", [2, 3])
def test_lost_structure_counts_more_than_changed_brightness(dims):
    """Of two errors with the same sum of squares, blur is five times as far as a brighter image.

    That is what the squared error alone cannot tell: for it both are the same, by construction.
    """
    d, x = perceptual_distance("random", ImageSpec(SIZES[dims])), balls(dims)
    blur = blurred(x, 1)
    rms = (blur - x).square().flatten(1).mean(1).sqrt().view(-1, *[1] * (dims + 1))
    bright = x + rms
    torch.testing.assert_close(*[(y - x).square().flatten(1).mean(1) for y in (blur, bright)])
    assert float((d(blur, x) / d(bright, x)).min()) > 5


def test_closed_form_of_one_position():
    """Two channels at one position: lengths 3 and 4 at a right angle."""
    f = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).view(2, 2, 1, 1)
    u, v = unit(f).chunk(2)
    want = 9 / (9 + FLOOR**2) + 16 / (16 + FLOOR**2)
    assert float(squared_distance(u, v)) == pytest.approx(want, rel=1e-6)


def test_gradients_are_finite_where_nothing_is_to_be_seen(distance):
    """Constant and equal images, where an unsoftened length would divide by zero."""
    d, x = distance
    for y in (torch.full_like(x, -1.0), torch.zeros_like(x), x.clone()):
        y.requires_grad_(True)
        d(y, y.detach()).sum().backward()
        assert torch.isfinite(y.grad).all() and float(y.grad.abs().max()) < 1e-4
    y = blurred(x, 1).requires_grad_(True)
    d(y, x).sum().backward()
    assert torch.isfinite(y.grad).all() and float(y.grad.abs().max()) > 1e-4


def test_the_random_network_is_the_same_for_everybody():
    """Neither global randomness nor the model around it changes it, and it stays in evaluation mode."""
    prints = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        d = perceptual_distance("random", ImageSpec((16, 16)))
        assert torch.equal(torch.get_rng_state(), before)
        prints.append(hashlib.sha256(b"".join(p.numpy().tobytes() for p in d.parameters())).hexdigest())
        assert not any(m.training for m in d.train().modules())
        assert not any(p.requires_grad for p in d.parameters())
    assert prints[0] == prints[1]


def test_bf16_does_not_round_it_away(distance):
    d, x = distance
    want = d(blurred(x, 1), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(d(blurred(x, 1), x), want)


def test_files_that_do_not_fit_are_refused(domain_file, tmp_path):
    """A missing file, another number of axes, a file of something else: what to give instead."""
    with pytest.raises(
        VerisimError, match=r"perceptual is 'vgg': neither 'random' nor a file.*save_features"
    ):
        perceptual_distance("vgg", ImageSpec((16, 16)))
    with pytest.raises(VerisimError, match=r"made for 1 channel\(s\) in 2D; these images have 1 in 3D"):
        perceptual_distance(str(domain_file), ImageSpec(SIZES[3]))
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="no readable safetensors"):
        perceptual_distance(str(bad), ImageSpec((16, 16)))
