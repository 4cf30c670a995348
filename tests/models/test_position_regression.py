"""Position regression: patches and grids are exact, an oracle errs by what was moved, shuffled targets teach nothing."""

import pytest
import torch
from torch import nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.models.anomaly.patches import cut, draw_centres, fill_in, grid, pad, usable_centres
from verisim.models.anomaly.position_regression import PositionNet
from verisim.phantoms import head_ct
from verisim.seeding import generator


def made(size, **settings):
    torch.manual_seed(0)
    return build_model(
        "position_regression", {"width": 2, "patch": 5, "patches": 16, **settings}, ImageSpec(size)
    )


class Oracle(nn.Module):
    """Reads the position off images whose channels are the coordinates."""

    def forward(self, patches):  # (B, d, p, ..., p) -> (B, d)
        middle = patches.shape[-1] // 2
        return (patches[(..., *[middle] * (patches.ndim - 2))] + 1) / 2


def coordinates(size):
    """(1, d, *size): channel k is the normalised coordinate of axis k, scaled to [-1, 1]."""
    axes = [torch.linspace(-1, 1, n) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def oracle(size, **settings):
    settings = {"width": 1, "patch": 3, "equalise": "none", **settings}
    model = build_model("position_regression", settings, ImageSpec(size, channels=len(size)))
    model.net = Oracle()
    return model


def parameters(width, patch=15, dims=3):
    net = PositionNet(dims, 1, patch, width, True)
    return sum(p.numel() for p in net.parameters())


def test_size_of_the_network():
    """Width 4 and patch 15 have 92,155 weights; twice the width nearly four times as many; a patch of 31 is halved four times."""
    assert parameters(4) == 92_155
    assert 3.8 < parameters(8) / parameters(4) < 4.0
    for patch in (31, 39):  # both are halved four times; 39 leaves 2 x 2 x 2 positions
        net = PositionNet(3, 1, patch, 1, False)
        assert len(net.features) == 1 + 2 * 4
        assert net.head[0].in_features == 16 * (1 if patch == 31 else 8)


def test_spectral_norm_is_one():
    """In training the largest singular value of every convolution tends to 1; without the norm it does not."""

    def largest(spectral):
        torch.manual_seed(0)
        net = PositionNet(2, 1, 7, 4, spectral)
        for _ in range(40):
            net(torch.zeros(1, 1, 7, 7))
        convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        return torch.stack([torch.linalg.matrix_norm(m.weight.flatten(1), 2) for m in convs])

    assert torch.allclose(largest(True), torch.ones(7), atol=0.02)
    assert not torch.allclose(largest(False), torch.ones(7), atol=0.02)


@pytest.mark.parametrize("size", [(9, 7), (6, 5, 7)])
def test_patches_are_cut_around_their_centre(size):
    """A patch is the box around its pixel in the padded image, whose middle is the image itself."""
    x = torch.rand(2, *size, generator=generator(0))
    padded = pad(x[None], 3, -1.0)[0]
    centres = torch.ones(size).nonzero()
    patches = cut(padded, centres, 3)
    assert torch.equal(patches[(..., *[1] * len(size))].T.reshape(2, *size), x)
    for k in (0, len(centres) // 2, len(centres) - 1):
        box = tuple(slice(int(c), int(c) + 3) for c in centres[k])
        assert torch.equal(patches[k], padded[(slice(None), *box)])
    assert bool((patches[0][:, 0] == -1).all())  # the first pixel has nothing before it


def test_usable_centres_are_those_that_see_foreground():
    """Against a loop over all patches; a lone pixel is seen from a box of the patch's size around it."""
    mask = torch.rand(1, 9, 10, 8, generator=generator(1)) > 0.995
    padded = pad(mask[:, None].float(), 5, 0.0)[0]
    every = cut(padded, torch.ones(9, 10, 8).nonzero(), 5).flatten(1).amax(1) > 0
    assert torch.equal(usable_centres(mask, 5)[0], every.view(9, 10, 8))
    one = torch.zeros(1, 9, 9, dtype=torch.bool)
    one[0, 4, 4] = True
    assert int(usable_centres(one, 5).sum()) == 25


def test_centres_are_drawn_from_what_is_usable():
    """Every usable pixel about equally often, no other ever."""
    usable = torch.zeros(6, 6, dtype=torch.bool)
    usable[1:3, 2:4] = True
    drawn = draw_centres(usable, 4000, generator(2))
    count = torch.zeros(6, 6).index_put_(tuple(drawn.T), torch.ones(4000), accumulate=True)
    assert float(count[~usable].sum()) == 0 and 850 < float(count[usable].min())


@pytest.mark.parametrize("size", [(16, 17), (9, 12, 5)])
@pytest.mark.parametrize("stride", [1, 3, 4, 100])
def test_grid_covers_the_image_and_interpolation_is_linear(size, stride):
    """First and last pixel are on the grid, gaps are at most the stride, and affine functions are filled in exactly."""
    axes = grid(size, stride)
    for at, n in zip(axes, size):
        assert at[0] == 0 and at[-1] == n - 1 and int(at.diff().max()) <= stride
    full = torch.meshgrid(*[torch.arange(n).double() for n in size], indexing="ij")
    coarse = torch.meshgrid(*[a.double() for a in axes], indexing="ij")
    slope = (0.5, -2.0, 3.0)
    exact = 1 + sum(s * t for s, t in zip(slope, full))
    found = fill_in(1 + sum(s * t for s, t in zip(slope, coarse)), axes, size)
    assert found.shape == size and torch.allclose(found, exact)
    rough = torch.rand([len(a) for a in axes], generator=generator(3), dtype=torch.float64)
    nodes = fill_in(rough, axes, size)[tuple(torch.meshgrid(*axes, indexing="ij"))]
    assert torch.allclose(nodes, rough)  # grid pixels keep their own value


@pytest.mark.parametrize("size", [(15, 22), (9, 13, 8)])
def test_oracle_errs_by_what_was_moved(size):
    """A network that knows every place has no error; on an image moved by k pixels the error is k / (N - 1)."""
    x = coordinates(size)
    moved = torch.roll(x, 2, dims=3)
    for stride in (1, 4):
        model = oracle(size)
        model.configure_sampling(stride=stride)
        assert float(model.anomaly_map(x).max()) < 1e-6
        inside = model.anomaly_map(moved)[0, 0].movedim(1, 0)[4:]
        if stride == 1:  # columns that were not rolled around
            assert torch.allclose(inside, torch.full_like(inside, 2 / (size[1] - 1)), atol=1e-6)
        else:
            assert float(inside.min()) > 0


def test_loss_is_the_distance_and_shuffling_breaks_it():
    """The oracle's loss is 0; with targets of other patches it is that of random pairs, far from 0."""
    x = coordinates((15, 18)).repeat(3, 1, 1, 1)
    right, wrong = (
        oracle((15, 18), patches=200, shuffled=s).training_loss(x, None)[0] for s in (False, True)
    )
    assert right.shape == (3,) and float(right.max()) < 1e-6
    # two independent uniform points of the unit square are 0.5214 apart on average
    assert torch.allclose(wrong, torch.full((3,), 0.52), atol=0.08)


def test_background_teaches_nothing():
    """An image of background alone has no loss and no gradient; with a head in it it has."""
    model = made((16, 16))
    for x, none in ((torch.full((1, 1, 16, 16), -1.0), True), (torch.rand(1, 1, 16, 16) * 2 - 1, False)):
        model.zero_grad()
        loss = model.training_loss(x, None)[0].mean()
        loss.backward()
        loss = loss.detach()
        slope = sum(float(p.grad.abs().sum()) for p in model.net.parameters() if p.grad is not None)
        assert (float(loss) == 0.0) is none and (slope == 0.0) is none
    assert float(model.anomaly_map(torch.full((1, 1, 16, 16), -1.0)).max()) == 0.0


def test_patches_depend_on_seed_and_step_alone():
    """The same step draws the same patches whatever else was drawn; the next step draws others."""
    model = made((12, 12, 12)).eval()
    x = torch.rand(2, 1, 12, 12, 12, generator=generator(4)) * 2 - 1
    a = model.training_loss(x, None)[0]
    torch.rand(7)
    assert torch.equal(model.training_loss(x, None)[0], a)
    model.step = 1
    assert not torch.equal(model.training_loss(x, None)[0], a)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 4}, "patch=4: a patch has a centre.*Nearest: 5"),
        ({"patch": 17}, "larger than the images, which are 16x16 pixels. Take at most --model.patch 15"),
        ({"width": 0}, "width=0"),
        ({"background": 1.5}, "background=1.5"),
    ],
)
def test_what_cannot_be_meant(settings, message):
    with pytest.raises(VerisimError, match=message):
        made((16, 16), **settings)


def test_refusals():
    """A bad stride, and averages of what cannot be averaged."""
    model = made((16, 16))
    model.configure_sampling(stride=0)
    with pytest.raises(VerisimError, match="stride=0"):
        model.anomaly_map(torch.zeros(1, 1, 16, 16))
    with pytest.raises(VerisimError, match=r"--training\.ema 0"):
        model.enable_ema(0.9)
    with pytest.raises(VerisimError, match=r"--training\.ema 0"):
        model.enable_power_ema()
    made((16, 16), spectral=False).enable_ema(0.9)


def test_it_learns_where_a_patch_sits():
    """Held-out heads: trained on their places the error is half of the best constant answer's, shuffled it is not."""
    train = head_ct.make(48, seed=1, size=32, findings="normal").images
    test = head_ct.make(8, seed=2, size=32, findings="normal").images

    def error(shuffled):
        settings = {"width": 4, "patch": 11, "patches": 24, "shuffled": shuffled, "lr": 3e-3}
        torch.manual_seed(0)
        model = build_model("position_regression", settings, train.spec)
        model.prepare(train.pixels)
        adam = model.optimizer()
        for step in range(150):
            model.step = step
            adam.zero_grad()
            model.training_loss(train.pixels[step % 6 * 8 :][:8], None)[0].mean().backward()
            adam.step()
        model.shuffled = False
        model.eval()
        with torch.no_grad():
            return float(model.training_loss(test.pixels, None)[0].mean())

    constant = 0.38  # mean distance of the unit square's points to its middle
    learned, control = error(False), error(True)
    assert learned < constant / 2 and control > 0.85 * constant, (learned, control)
