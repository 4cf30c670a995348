"""Segmenting models: the contract of every one, and what the source says of diffusion segmentation."""

import pytest
import torch
from tests.fake_device import DEVICE, fake_device

from verisim.data.spec import Images, ImageSpec
from verisim.diffusion.schedules import vp_linear_table
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, load_model, save_model
from verisim.models import MODELS, build_model, model_class
from verisim.models.diffusion.segmentation import sampling_levels
from verisim.models.segmentation.base import SegmentationModel
from verisim.roles import Segmenter

SMALL = {
    "diffusion_segmentation": {"channels": (4, 8), "blocks": 1, "patch": 8, "lr": 1e-3},
    "supervised_segmentation": {"channels": (4, 8, 8), "patch": 8},
}
SIZES = [(16, 16), (8, 12, 8)]


def made(name="diffusion_segmentation", size=(16, 16), inputs=2, awake=True, **settings):
    """A small model; awake = weights that are 0 at the start are given random values."""
    torch.manual_seed(0)
    model = build_model(name, {**SMALL[name], **settings}, ImageSpec(size, inputs))
    for p in model.net.parameters():
        if awake and not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def batch(size=(16, 16), channels=2, n=3):
    g = torch.Generator().manual_seed(1)
    mask = torch.zeros(n, 1, *size, dtype=torch.uint8)
    mask[(slice(None), 0, *[slice(2, 6) for _ in size])] = 4  # any code but 0 is foreground
    return {"image": torch.rand(n, channels, *size, generator=g) * 2 - 1, "mask": mask}


def test_every_segmenter_is_tested():
    """A segmenting model added to the registry without small settings here would escape these tests."""
    assert set(SMALL) == {n for n in MODELS if issubclass(model_class(n), SegmentationModel)}


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("size", [*SIZES, (9, 13)])
def test_contract(name, size, tmp_path):
    """Probabilities that sum to 1 on the image's own grid, repeatable, the same from the file alone."""
    model = made(name, size)
    model.use_channels_last()  # as a loaded model is
    if name == "diffusion_segmentation":
        model.configure_sampling(steps=2, ensemble=2)
    x = batch(size)["image"]
    p = model.segment(x)
    assert (
        p.shape == (3, 2, *size)
        and torch.allclose(p.sum(1), torch.ones(3, *size))
        and isinstance(model, Segmenter)
    )
    found = model.predict(x)
    assert (
        torch.equal(found.mean, p[:, 1:])
        and float(found.variance.min()) >= 0
        and float(found.variance.max()) <= 0.25
    )
    assert torch.equal(found.mask, found.mean > 0.5)
    alone = model.predict(x[1:2]).mean  # whatever else is in the batch; step 999 enlarges rounding 158 times
    assert float((alone - found.mean[1:2]).abs().mean()) < 1e-3
    save_model(tmp_path / "w", model, ModelCard(name, SMALL[name], model.spec))
    again, _ = load_model(tmp_path / "w")
    again.options = model.options
    assert torch.equal(again.predict(x).mean, found.mean)
    with pytest.raises(VerisimError, match=r"segments .D images of 2 channel"):
        model.predict(x[:, :1])
    with pytest.raises(VerisimError, match="cannot sample"):
        model.sample(1)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_training_reaches_the_network(name):
    """A step from a batch with codes; without masks one sentence says what is missing; a dry run needs none."""
    model = made(name)
    model.log_dict = lambda *a, **k: None
    model.training_step(batch(), 0).backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in model.net.parameters() if p.grad is not None)
    model.trial_loss(batch()["image"], None).backward()
    with pytest.raises(VerisimError, match=r"--data\.mask"):
        model.training_step({"image": batch()["image"]}, 0)


@pytest.mark.parametrize("train_on", ["patch", "full", "half"])
@pytest.mark.parametrize("label_low", [0.0, -1.0])
def test_loss_at_the_start_is_one(train_on, label_low):
    """The head starts at 0, so the error is the noise itself: mean square 1 (a unit test of C.3)."""
    model = made(awake=False, size=(16, 16, 16), train_on=train_on, label_low=label_low)
    b = batch((16, 16, 16), n=16)
    loss, _ = model.mask_loss(b["image"], (b["mask"] > 0).float())
    assert loss.shape == (16,) and float(loss.detach().mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "channels"),
    [({}, 2 + 3 + 1), ({"coordinates": False}, 3), ({"train_on": "full", "coordinates": False}, 3)],
)
def test_what_the_network_sees(settings, channels):
    """[b, CE, x_t] in this order, the noised mask last; b is never noised; a crop keeps its place."""
    model = made(size=(16, 16, 16), **settings)
    assert model.net.conv_in.in_channels == channels
    b = batch((16, 16, 16))
    seen = []
    model.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    torch.manual_seed(3)
    model.mask_loss(b["image"], (b["mask"] > 0).float())
    z = seen[0]
    side = 16 if model.train_on == "full" else 8
    assert z.shape == (3, channels, side, side, side)
    whole = model.condition(b["image"])
    windows = (
        whole.unfold(2, side, 1).unfold(3, side, 1).unfold(4, side, 1).flatten(2, 4)
    )  # (B, C, places, ...)
    for row, places in zip(z, windows):
        assert bool(
            (places.movedim(1, 0) == row[:-1]).flatten(1).all(1).any()
        )  # one of the image's own windows
    assert float(z[:, -1].std()) > 0.3  # noise


@pytest.mark.parametrize("n", [1, 2, 20, 1000])
def test_levels_of_the_source(n):
    """round(linspace(999, 0, n)): from the noisiest level to step 0, then to 0; it rises with t."""
    table = vp_linear_table()
    s = sampling_levels(table, n)
    assert len(s) == n + 1 and s[0] == table[-1] and s[-1] == 0 and (n == 1 or s[-2] == table[0])
    assert float(table[0]) == pytest.approx((1e-4 / (1 - 1e-4)) ** 0.5) and float(table[-1]) > 150


class Oracle(torch.nn.Module):
    """The exact noise for a mask that is known: F = (x_t - sqrt(abar) x_0) / sqrt(1 - abar)."""

    stride = 1

    def __init__(self, x0):
        super().__init__()
        self.x0 = x0
        self.alpha_bar = (1 / (1 + vp_linear_table() ** 2)).float()

    def forward(self, z, step):
        a = self.alpha_bar[step.round().long()].view(-1, *[1] * (z.ndim - 1))
        return (z[:, -1:] - a.sqrt() * self.x0) / (1 - a).sqrt()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [1, 3, 20, 300])
@pytest.mark.parametrize("label_low", [0.0, -1.0])
def test_the_true_noise_gives_the_true_mask(sampler, steps, label_low):
    """Exact at every number of steps, deterministic or not; the ensemble of equal answers has no variance."""
    true = (batch()["mask"][:1] > 0).float()
    model = made(label_low=label_low, coordinates=False)
    model.net, model.stride = Oracle(true * (1 - label_low) + label_low), 1
    model.configure_sampling(steps=steps, sampler=sampler, ensemble=2)
    found = model.predict(batch()["image"][:1])
    assert torch.allclose(found.mean, true, atol=2e-3) and float(found.variance.max()) < 1e-4


def test_seeds_and_members():
    """One seed, one answer; another seed, another; the k-th member does not depend on how many there are."""
    model = made(size=(8, 8, 8))
    model.configure_sampling(steps=3, ensemble=4)
    x = batch((8, 8, 8))["image"]
    a, b, c = (model.predict(x, seed).mean for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    few, many = list(model.members(x, 2, seed=1)), list(model.members(x, 4, seed=1))
    assert all(torch.equal(p, q) for p, q in zip(few, many)) and not torch.equal(many[0], many[1])
    own = model.predict(x, [7, 1, 9]).mean
    assert torch.allclose(own[1], a[1], atol=1e-4) and not torch.allclose(own[0], a[0], atol=1e-2)
    with pytest.raises(VerisimError, match="2 seeds for 3 images"):
        model.predict(x, [1, 2])
    stack = torch.stack(many)
    found = model.predict(x, 1)
    assert torch.allclose(found.mean, stack.mean(0)) and found.members == 4
    assert torch.allclose(found.variance, stack.var(0, correction=0), atol=1e-5)


def test_one_pass_is_not_tiles():
    """Halves of a volume put together differ from the volume in one pass: the reason for not tiling (D.9)."""
    model = made(size=(16, 16, 16))
    model.configure_sampling(steps=1, ensemble=1)
    x = batch((16, 16, 16), n=1)["image"]
    b, sigma = model.condition(x), torch.ones(1)
    noisy = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model.denoise(noisy, sigma, b)
        tiles = [model.denoise(v, sigma, w) for v, w in zip(noisy.split(8, 2), b.split(8, 2))]
    apart = (torch.cat(tiles, 2) - whole).abs().mean((0, 1, 3, 4))  # (16,) over depth
    assert float(apart[7:9].mean()) > 1e-3


def test_training_memory_is_that_of_the_crop():
    """A crop of half the side keeps an eighth of the bytes (8 +- 0.5; D.9)."""
    from verisim.training.memory import with_saved_bytes

    kept = []
    for train_on in ("full", "patch"):
        model = made(size=(32, 32, 32), train_on=train_on, patch=16).train()
        b = batch((32, 32, 32), n=1)
        weights = list(model.net.parameters())
        kept.append(with_saved_bytes(lambda m=model, b=b: m.trial_loss(b["image"], None), without=weights)[1])
    assert kept[0] / kept[1] == pytest.approx(8, abs=0.5)


@pytest.mark.parametrize("how", ["stride", "mean"])
def test_half_resolution_comes_back_on_the_grid(how):
    """HalfRes trains and samples at half size and answers at full size."""
    model = made(size=(10, 14), train_on="half", halving=how)
    model.configure_sampling(steps=2, ensemble=1)
    seen = []
    model.net.register_forward_pre_hook(lambda net, args: seen.append(args[0].shape[2:]))
    assert model.predict(batch((10, 14))["image"]).mean.shape == (3, 1, 10, 14)
    assert seen[0] == (6, 8)  # 5 x 7, padded to even sides


def test_supervised_learns_a_square_in_seconds():
    """Forty steps on one bright square; shuffled masks, the negative control, teach it nothing."""
    from verisim.metrics.segmentation import dice

    g = torch.Generator().manual_seed(0)
    true = torch.zeros(16, 1, 16, 16)
    for k, (i, j) in enumerate(torch.randint(10, (16, 2), generator=g).tolist()):
        true[k, 0, i : i + 5, j : j + 5] = 1
    x = 2 * true - 1 + 0.3 * torch.randn(true.shape, generator=g)
    score = {}
    for control in (False, True):
        model = made("supervised_segmentation", inputs=1, patch=0, lr=1e-2).train()
        optimizer, mask = model.optimizer(), true.roll(1, 0) if control else true
        for _ in range(40):
            optimizer.zero_grad()
            model.mask_loss(x[:12], mask[:12])[0].mean().backward()
            optimizer.step()
        score[control] = float(dice(model.predict(x[12:]).mask, true[12:]).mean())
    assert score[False] > 0.85 and score[True] < 0.5


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("diffusion_segmentation", {"patch": 32}, "32 pixels a side does not fit into images of 16x16"),
        ("diffusion_segmentation", {"patch": 7}, "multiple of 2"),
        ("diffusion_segmentation", {"label_low": 0.5}, "background is 0 or -1"),
        ("diffusion_segmentation", {"train_on": "tiles"}, "patch, full or half"),
        ("diffusion_segmentation", {"skip": "mean"}, "Unknown skip"),
        ("supervised_segmentation", {"patch": 20}, "does not fit"),
        ("supervised_segmentation", {"channels": (8,)}, "three levels"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(VerisimError, match=message):
        made(name, **settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"steps": 1001}, "1 to 1000"),
        ({"ensemble": 0}, "at least 1"),
        ({"sampler": "ddmi"}, "Did you mean"),
        ({"clip": True}, "no sampling option 'clip'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(VerisimError, match=message):
        made().configure_sampling(**options)


def test_images_carry_codes():
    """The set that training streams from keeps masks beside images."""
    b = batch()
    images = Images(b["image"], ImageSpec((16, 16), 2), segmentation=b["mask"])
    assert torch.equal(images.subset(torch.tensor([2])).segmentation, b["mask"][2:])


@pytest.mark.parametrize("name", sorted(SMALL))
def test_on_a_device(name):
    """A step leaves nothing on the CPU, and images of the CPU are segmented as there."""
    given, x = batch(), batch()["image"]
    here = made(name).predict(x, 1).mean
    with fake_device():
        model = made(name).to(DEVICE)
        model.mask_loss(given["image"].to(DEVICE), (given["mask"] > 0).float().to(DEVICE))[
            0
        ].mean().backward()
        found = model.predict(x, 1)
        assert found.variance.device == DEVICE
        torch.testing.assert_close(found.mean.cpu(), here, atol=1e-4, rtol=0)
