"""The small classifier: any size from 16 on, small, and able to learn."""

import pytest
import torch

from verisim.errors import VerisimError
from verisim.nets import Classifier


@pytest.mark.parametrize("size", [(16, 16), (33, 17), (64, 64), (16, 16, 16), (17, 20, 24)])
def test_shapes_for_any_size(size):
    """Features have one length for every image size; logits one per output."""
    net = Classifier(len(size), 1, 3)
    x = torch.randn(2, 1, *size)
    assert net(x).shape == (2, 3) and net.features(x).shape == (2, net.dim) == (2, 64)


@pytest.mark.parametrize("dims", [2, 3])
def test_parameter_count(dims):
    """Small enough to train on a CPU in seconds, large enough to judge: 100k to 300k parameters."""
    assert 100_000 < sum(p.numel() for p in Classifier(dims, 1, 2).parameters()) < 300_000


def test_samples_do_not_see_each_other():
    """A judge that normalised over the batch would judge the batch, not the image."""
    net, x = Classifier(2, 1, 1), torch.randn(2, 1, 16, 16)
    other = torch.stack([x[0], 9 * x[1]])
    assert torch.equal(net(x)[0], net(other)[0])


def test_learns_a_texture_and_not_nothing():
    """Twenty steps separate fine from coarse noise; the same net trained on shuffled labels does not."""
    g = torch.Generator().manual_seed(0)
    fine = torch.randn(64, 1, 16, 16, generator=g)
    coarse = torch.nn.functional.interpolate(torch.randn(64, 1, 4, 4, generator=g), scale_factor=4.0)
    x, label = torch.cat([fine, coarse]), torch.arange(128) // 64
    train, test = torch.arange(0, 128, 2), torch.arange(1, 128, 2)

    def accuracy(targets):
        torch.manual_seed(0)
        net = Classifier(2, 1, 2, width=8)
        opt = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(20):
            loss = torch.nn.functional.cross_entropy(net(x[train]), targets[train])
            opt.zero_grad()
            loss.backward()
            opt.step()
        return (net(x[test]).argmax(1) == label[test]).float().mean()

    assert accuracy(label) > 0.95
    assert accuracy(label[torch.randperm(128, generator=g)]) < 0.85


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: Classifier(2, 1, 2)(torch.zeros(1, 1, 12, 40)), "12x40 are too small.*16 or more"),
        (lambda: Classifier(1, 1, 2), "must be 2 or 3"),
        (lambda: Classifier(2, 1, 2, depth=0), "must be 1 or more"),
    ],
)
def test_errors(make, text):
    """What cannot be judged is refused with the limit."""
    with pytest.raises(VerisimError, match=text):
        make()
