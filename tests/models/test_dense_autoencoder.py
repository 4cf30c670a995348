"""The reconstruction baseline: the layout of the specification, filters by their definition, and what it restores."""

import pytest
import torch

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.models.anomaly.dense_autoencoder import DenseNet, filtered, stage_channels
from verisim.seeding import generator


def test_layout_of_the_source():
    """256 voxels a side: six halvings to 4, channels m, 2m, 4m, ..., 16 channels before a code of 128."""
    assert stage_channels((256, 256, 256), 8) == (8, 16, 32, 32, 32, 32)
    with torch.device("meta"):
        net = DenseNet(ImageSpec((256, 256, 256)), 1, 128)
    assert net.to_code.in_features == 16 * 4**3 and net.to_code.out_features == 128
    assert stage_channels((48, 48, 48), 8) == (8, 16, 32) and stage_channels((9, 9), 2) == (2,)


def test_filters():
    """A lone voxel vanishes; of a cube as large as the filter erosion leaves the middle, the median its core."""
    lone, cube = torch.zeros(2, 1, 1, 11, 11, 11)
    lone[0, 0, 5, 5, 5] = 1
    cube[0, 0, 3:8, 3:8, 3:8] = 1
    for kind in ("median", "erosion"):
        assert float(filtered(lone, kind).max()) == 0
    left = filtered(cube, "erosion")[0, 0].nonzero().tolist()
    assert left == [[5, 5, 5]]
    core = filtered(cube, "median")[0, 0]
    assert 1 < float(core.sum()) < 125 and float(core[5, 5, 5]) == 1 and float(core[3, 3, 3]) == 0
    assert torch.equal(filtered(cube, "none"), cube)
    with pytest.raises(VerisimError, match="Unknown filter 'mean'"):
        filtered(cube, "mean")
    with pytest.raises(VerisimError, match="filter_size=0"):
        filtered(cube, "median", 0)


@pytest.mark.parametrize("size", [(16, 16), (10, 9, 12)])
def test_it_restores_what_it_has_learned(size):
    """The loss falls by half, and a block that is new is where the residual is largest."""
    torch.manual_seed(0)
    model = build_model("dense_autoencoder", {"width": 4, "latent": 8, "equalise": "none"}, ImageSpec(size))
    smooth = torch.linspace(-0.5, 0.5, size[-1]).expand(1, 1, *size)
    shift = 0.2 * torch.randn(32, *[1] * (len(size) + 1), generator=generator(0))
    x = (smooth + shift).clamp(-1, 1)
    adam = model.optimizer()
    losses = []
    for step in range(120):
        adam.zero_grad()
        loss = model.training_loss(x[step % 2 * 16 :][:16], None)[0].mean()
        loss.backward()
        adam.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    model.eval()
    new = x[:1].clone()
    block = (0, 0, *[slice(2, 7)] * len(size))
    new[block] += 0.8
    found = model.residual(new.clamp(-1, 1))
    inside = torch.zeros_like(found, dtype=torch.bool)
    inside[block] = True
    assert float(found[inside].mean()) > 2 * float(found[~inside].mean())
    middle = (0, 0, *[4] * len(size))
    assert float(model.anomaly_map(new.clamp(-1, 1))[middle]) > 0.2


def test_what_cannot_be_meant():
    with pytest.raises(VerisimError, match="each side must be 8 or more"):
        build_model("dense_autoencoder", {}, ImageSpec((6, 16)))
    with pytest.raises(VerisimError, match="latent=0"):
        build_model("dense_autoencoder", {"latent": 0}, ImageSpec((16, 16)))
