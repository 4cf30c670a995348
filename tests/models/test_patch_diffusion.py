"""Patch diffusion: the network does to a patch what it does to the whole, and knows where the patch lies."""

import pytest
import torch

from verisim.data.patches import crops
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, load_model, save_model
from verisim.models import build_model
from verisim.models.diffusion.patches import patch_size
from verisim.training.memory import with_saved_bytes

NET = {"channels": (8, 8), "blocks": 1, "allow_small_features": True, "steps": 3}
HALF = {"patches": (0.5,), "chances": (1.0,), "copies": (1,)}


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def made(size=(32, 32), random=False, **settings):
    torch.manual_seed(0)
    model = build_model("patch_diffusion", {**NET, **settings}, ImageSpec(size))
    if random:
        for p in model.net.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model.eval()


@pytest.mark.parametrize("size", [(64, 16), (64, 8, 8)])
def test_a_patch_is_seen_as_in_the_whole(size):
    """Norms by pixel: away from its border, a patch gives exactly the crop of what the whole gives; group norms do not."""
    corner, crop = torch.tensor([[4, 0, 0][: len(size)]]), (56, *size[1:])
    inner = slice(24, -24)  # 1 + 2 + 2 x 8 + 2 + 1 convolutions reach 22 pixels, and the grid of 2 one more
    x, c = torch.randn(1, 1, *size, generator=seeded()), torch.zeros(1)
    gaps = {}
    with torch.no_grad():
        for norm in ("pixel", "group"):
            model = made(size, random=True, norm=norm)
            whole = crops(model.net(x, c), corner, crop)
            part = model.net(crops(x, corner, crop), c, corners=corner)
            gaps[norm] = float((whole - part)[:, :, inner].abs().max() / whole.std())
        blind = model.net(crops(x, corner, crop), c, corners=torch.zeros_like(corner))
    assert gaps["pixel"] < 1e-4 < 1e-2 < gaps["group"]
    assert float((blind - part).abs().max()) > 1e-2  # control: another place is another answer


def test_coordinates_start_as_nothing_and_are_learned():
    """The new channels' weights are 0 at the start and have a gradient once the output has weights."""
    model = made()
    weight = model.net.unet.conv_in.weight.detach()
    assert weight.shape[1] == 3 and float(weight[:, 1:].abs().max()) == 0 < float(weight[:, 0].abs().max())
    random = made(random=True)
    random.training_loss(torch.rand(4, 1, 32, 32) * 2 - 1, None)[0].mean().backward()
    assert float(random.net.unet.conv_in.weight.grad[:, 1:].abs().min()) > 0
    assert made(coordinates=False).net.unet.conv_in.weight.shape[1] == 1


def test_sizes_are_drawn_as_asked():
    """Shares of the side in multiples of the stride, with their chances and copies; the same for a step again."""
    model = made(patches=(0.25, 0.5, 1.0), chances=(0.2, 0.3, 0.5), copies=(4, 2, 1))
    drawn = []
    for model.step in range(600):
        drawn.append(model.draw_patch())
    assert {d: round(drawn.count(d) / 600, 1) for d in sorted(set(drawn))} == {
        ((8, 8), 4): 0.2,
        ((16, 16), 2): 0.3,
        ((32, 32), 1): 0.5,
    }
    assert model.draw_patch() == drawn[-1]
    assert patch_size((33, 17), 0.5, 4) == (16, 8) and patch_size((33, 17), 1.0, 4) == (33, 17)


def test_patches_need_less_memory():
    """Half of each side in 3D: what a step keeps for the backward pass is an eighth of the whole's."""
    x = torch.rand(2, 1, 16, 16, 16, generator=seeded()) * 2 - 1
    kept = []
    for share in (0.5, 1.0):
        model = made((16, 16, 16), patches=(share,), chances=(1.0,), copies=(1,)).train()
        kept.append(with_saved_bytes(lambda m=model: m.trial_loss(x, None), model.net.parameters())[1])
    assert kept[0] < kept[1] / 5


def test_only_with_coordinates_can_patches_tell_left_from_right():
    """Images bright on the left, patches that each lie on one side: out of pure noise the edge comes with coordinates only."""
    x = torch.full((16, 1, 16, 16), -0.7)
    x[..., :8] = 0.7
    error = {}
    for use in (True, False):
        model = made((16, 16), coordinates=use, parametrisation="x0", lr=5e-3, channels=(16,), **HALF).train()
        optimizer = model.optimizer()
        for _ in range(50):
            model.begin_step()
            optimizer.zero_grad()
            model.training_loss(x, None)[0].mean().backward()
            optimizer.step()
            model.end_step()
        noise = 100 * torch.randn(4, 1, 16, 16, generator=seeded())
        seen = model.eval().denoise(noise, torch.full((4,), 100.0)).detach()
        error[use] = float((seen - x[:4]).square().mean())
    assert error[True] < 0.1 < 0.4 < error[False], error


def test_the_file_holds_it_and_odd_sizes_work(tmp_path):
    """Padding is told the coordinates of the pixels it repeats; the weights file alone draws the same images."""
    settings = {**NET, **HALF}
    model = made((33, 18), random=True, **HALF)
    model.use_channels_last()
    save_model(tmp_path / "w", model, ModelCard("patch_diffusion", settings, model.spec))
    again, _ = load_model(tmp_path / "w")
    a, b = (m.sample(2, generator=seeded()) for m in (model, again))
    assert torch.equal(a, b) and a.shape == (2, 1, 33, 18)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"patches": (1.5,), "chances": (1.0,), "copies": (1,)}, r"a share of the image's side in \(0, 1\]"),
        ({"patches": (0.5,)}, "give each size a chance"),
        ({**HALF, "copies": (0,)}, "a number of copies"),
    ],
)
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(VerisimError, match=text):
        made(**settings)


def test_a_patch_without_a_place_is_refused():
    with pytest.raises(VerisimError, match="16x16 pixels without a place; the whole image has 32x32"):
        made().net(torch.zeros(1, 1, 16, 16), torch.zeros(1))
