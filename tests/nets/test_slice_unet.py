"""The network over slices: order means nothing, padding does nothing, distances start as nothing."""

import math

import pytest
import torch

from verisim.errors import VerisimError
from verisim.nets.slice_unet import SliceAttention, SliceUNet, distance_features


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def randomised(net):
    torch.manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return net.eval()


def made(positions="both", **settings):
    return randomised(SliceUNet(1, 1, 10, (8, 16), 1, (True, True), 8, positions=positions, **settings))


def inputs(n=4):
    x = torch.randn(2, n, 1, 4, 4, generator=seeded())
    index = torch.tensor([[0, 3, 7, 9], [5, 2, 8, 1]])[:, :n]
    observed = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]).bool()[:, :n]
    return x, index, observed, torch.ones_like(observed), torch.tensor([0.1, -0.4])


@pytest.mark.parametrize("positions", ["relative", "absolute", "both"])
def test_the_order_of_slots_means_nothing(positions):
    """Slices, numbers and marks permuted together permute the answer."""
    net = made(positions)
    x, index, observed, present, c = inputs()
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        a = net(x, index, observed, present, c)
        b = net(x[:, order], index[:, order], observed[:, order], present, c)
    torch.testing.assert_close(b, a[:, order], rtol=1e-4, atol=1e-5)
    assert float((b - a).abs().max()) > 1e-2  # control: the slices do differ


def test_padding_does_nothing():
    """No gradient from a padded slot to any other, and none of its content in the answer; a present one has both."""
    net = made()
    x, index, observed, _, c = inputs()
    present = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    x.requires_grad_(True)
    out = net(x, index, observed & present, present, c)
    (gradient,) = torch.autograd.grad(out[present].square().sum(), x)
    assert float(gradient[~present].abs().max()) == 0.0
    assert float(gradient[present].flatten(1).abs().amax(1).min()) > 0
    other = torch.where(present[..., None, None, None], x, torch.full_like(x, 9.0)).detach()
    again = net(other, index, observed & present, present, c)
    torch.testing.assert_close(again[present], out[present], rtol=1e-5, atol=1e-6)


def test_distances_start_as_nothing():
    """With its last layer 0, relative attention is plain attention, and a fresh module is the identity."""
    torch.manual_seed(0)
    fresh = SliceAttention(8, 4, 6)
    x, emb = torch.randn(6, 8, 2, 2, generator=seeded()), torch.randn(6, 6, generator=seeded(1))
    delta, present = torch.arange(9).view(1, 3, 3).expand(2, 3, 3), torch.ones(2, 3).bool()
    assert torch.equal(fresh(x, delta, emb, present), x)
    relative, plain = randomised(SliceAttention(8, 4, 6)), SliceAttention(8, 4, 6, relative=False)
    plain.load_state_dict({k: v for k, v in relative.state_dict().items() if "distance" not in k})
    seen = relative(x, delta, emb, present)
    assert float((seen - plain(x, delta, emb, present)).detach().abs().max()) > 1e-3
    for p in relative.relative.parameters():
        p.data.zero_()
    torch.testing.assert_close(relative(x, delta, emb, present), plain(x, delta, emb, present))


def test_attention_equals_a_loop():
    """a_ij = q_i k_j / sqrt d + q_i R^K_ij + k_j R^Q_ij; out_i = sum_j softmax(a)_ij (v_j + R^V_ij), one head, one pixel."""
    net = randomised(SliceAttention(4, 4, 3))
    x, emb = torch.randn(3, 4, 1, 1, generator=seeded()), torch.randn(3, 3, generator=seeded(1))
    index = torch.tensor([[2, 0, 5]])
    delta = index[:, :, None] - index[:, None, :]
    with torch.no_grad():
        out = net(x, delta, emb, torch.ones(1, 3).bool())
        q, k, v = net.qkv(net.norm(x).flatten(1)).view(3, 3, 4).unbind(1)
        for i in range(3):
            logits, values = [], []
            for j in range(3):
                f = distance_features(delta[0, i, j])
                rq, rk, rv = net.relative(
                    torch.nn.functional.silu(net.distance(f) + net.noise(emb[i]))
                ).chunk(3)
                logits.append(q[i] @ k[j] / 2 + q[i] @ rk + k[j] @ rq)
                values.append(v[j] + rv)
            y = (torch.stack(logits).softmax(0)[:, None] * torch.stack(values)).sum(0)
            torch.testing.assert_close(out[i].flatten(), x[i].flatten() + net.out(y), rtol=1e-4, atol=1e-5)


def test_features_of_distance():
    """Golden: log 1p of the distance on its own side, and a mark for the slice itself."""
    f = distance_features(torch.tensor([-2, 0, 3]))
    wanted = [[0, math.log(3), 0], [0, 0, 1], [math.log(4), 0, 0]]
    torch.testing.assert_close(f, torch.tensor(wanted))


def test_relative_positions_do_not_know_the_ends_and_absolute_ones_do():
    """All numbers moved by one: the relative net gives the same answer, one that knows places another."""
    x, index, observed, present, c = inputs()
    index = index.clamp(max=8)
    with torch.no_grad():
        for positions, same in (("relative", True), ("absolute", False), ("both", False)):
            net = made(positions)
            a, b = (net(x, index + k, observed, present, c) for k in (0, 1))
            assert torch.allclose(a, b, atol=1e-5) == same
    with pytest.raises(VerisimError, match="6 channels cannot be split into heads of 4"):
        SliceAttention(6, 4, 3)
