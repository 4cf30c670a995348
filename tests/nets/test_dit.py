"""The diffusion transformer: shapes, exact identities, positions, masking, and errors with their remedy."""

import pytest
import torch

from verisim.errors import VerisimError
from verisim.nets import DiT
from verisim.nets.dit import coordinates, sincos, turned, turns

SIZES = {2: (8, 12), 3: (4, 8, 4)}


def make(dims=2, awake=True, **settings):
    torch.manual_seed(0)
    settings = {"width": 24, "depth": 3, "head_channels": 12, **settings}
    net = DiT(dims, 2, 3, **settings)
    if awake:
        for p in net.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)
    return net


def inputs(dims=2, n=2):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, *SIZES[dims], generator=g), torch.linspace(-1, 1, n)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patch": 4},
        {"patch": 1},
        {"positions": "rope"},
        {"embedding": "sinusoidal"},
        {"checkpointing": True},
    ],
    ids=str,
)
def test_output_has_the_size_of_the_input(dims, settings):
    """Every setting gives (B, out, *S) in 2D and 3D, for sides that differ."""
    x, c = inputs(dims)
    y = make(dims, **settings)(x, c)
    assert y.shape == (2, 3, *SIZES[dims]) and y.dtype == torch.float32 and torch.isfinite(y).all()


def test_starts_at_zero_and_blocks_as_the_identity():
    """adaLN-Zero: a fresh network answers exactly 0, and its blocks pass tokens through bit for bit."""
    net = make(awake=False)
    x, c = inputs()
    assert not net(x, c).any()
    h, emb = torch.randn(2, 24, 24), torch.randn(2, 24)
    assert all(torch.equal(block(h, emb, None), h) for block in net.blocks)


@pytest.mark.parametrize("settings", [{}, {"positions": "rope"}, {"num_classes": 2, "vector": 3}], ids=str)
def test_gradient_reaches_every_parameter(settings):
    """No layer is left out of the graph (a network without masking has no blank token)."""
    net, (x, c) = make(**settings), inputs()
    more = {"label": torch.tensor([0, 1]), "vector": torch.randn(2, 3)} if "vector" in settings else {}
    net(x, c, **more).square().sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_class_vector_and_noise_level_matter():
    """Each changes the output; no class is the null class, no vector is zeros."""
    net = make(num_classes=2, vector=3)
    x, c = inputs()
    y = net(x, c)
    assert torch.equal(net(x, c, torch.full((2,), 2)), y)
    assert torch.equal(net(x, c, vector=torch.zeros(2, 3)), y)
    for other in (
        net(x, c + 0.05),
        net(x, c, torch.zeros(2, dtype=torch.long)),
        net(x, c, vector=torch.ones(2, 3)),
    ):
        assert float((other - y).detach().abs().max()) > 1e-4


def test_a_fresh_vector_changes_nothing_and_its_gradient_arrives():
    """Its projection starts at zero; awake, every value of it has a gradient."""
    net, (x, c) = make(vector=3), inputs()
    torch.nn.init.zeros_(net.embedding.vector.weight)
    torch.nn.init.zeros_(net.embedding.vector.bias)
    assert torch.equal(net(x, c, vector=torch.randn(2, 3)), net(x, c))
    torch.nn.init.normal_(net.embedding.vector.weight)
    v = torch.randn(2, 3, requires_grad=True)
    net(x, c, vector=v).square().sum().backward()
    assert bool((v.grad != 0).all())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_swapping_two_tokens_changes_more_than_their_order(positions, dims):
    """Spec 003, 16-I: positions count. Without them (control) the network is equivariant to a swap."""
    net = make(dims, positions=positions)
    x, c = inputs(dims)
    swapped = x.clone()
    swapped[:, :, :2, :2], swapped[:, :, 2:4, 2:4] = x[:, :, 2:4, 2:4], x[:, :, :2, :2]

    def back(y):
        z = y.clone()
        z[:, :, :2, :2], z[:, :, 2:4, 2:4] = y[:, :, 2:4, 2:4], y[:, :, :2, :2]
        return z

    with torch.no_grad():
        assert float((back(net(swapped, c)) - net(x, c)).abs().max()) > 1e-4
        net.place = lambda grid, device: (
            torch.zeros_like(DiT.place(net, grid, device))
            + (torch.tensor([1.0, 0.0]) if positions == "rope" else 0.0)
        )
        torch.testing.assert_close(back(net(swapped, c)), net(x, c), atol=1e-5, rtol=1e-4)


def test_positions_differ_for_every_token():
    """No two tokens of a grid have the same position, in 2D and 3D, also on odd widths."""
    for grid, width in (((5, 7), 24), ((3, 4, 5), 26), ((3, 4, 5), 24)):
        table = sincos(grid, width, torch.device("cpu"))
        assert table.shape == (len(coordinates(grid, torch.device("cpu"))[0]), width)
        assert len(torch.unique(table, dim=0)) == len(table)


@pytest.mark.parametrize("grid", [(6, 6), (4, 4, 4)])
def test_rope_products_depend_on_distances_alone(grid):
    """q_i . k_j after turning is the same for every pair of tokens with one displacement, per axis."""
    d = 24
    table = turns(grid, d, torch.device("cpu"))
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(d, generator=g).expand(1, 1, len(table), d) for _ in range(2))
    scores = (turned(q, table) @ turned(k, table).transpose(2, 3))[0, 0]  # (N, N)
    where = torch.stack(coordinates(grid, torch.device("cpu")), 1)
    known = {}
    for i in range(len(where)):
        for j in range(len(where)):
            key = tuple((where[i] - where[j]).tolist())
            assert float(scores[i, j]) == pytest.approx(known.setdefault(key, float(scores[i, j])), abs=1e-4)
    assert len({round(v, 3) for v in known.values()}) > 0.9 * len(known)
    torch.testing.assert_close(turned(q, table).norm(dim=3), q.norm(dim=3))  # a rotation


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_keeping_all_tokens_is_the_plain_network(positions):
    """A permutation of all tokens as `keep` gives the same answer: gather, scatter and positions are right."""
    net = make(masked=True, positions=positions)
    x, c = inputs()
    keep = torch.stack([torch.randperm(24, generator=torch.Generator().manual_seed(k)) for k in (0, 1)])
    with torch.no_grad():
        torch.testing.assert_close(net(x, c, keep=keep), net(x, c), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("full_blocks", [0, 2])
def test_dropped_tokens_are_not_seen(dims, full_blocks):
    """What stands at a dropped token changes nothing at the kept ones; a kept one does (control)."""
    net = make(dims, masked=True, full_blocks=full_blocks)
    x, c = inputs(dims)
    torch.manual_seed(0)
    keep, weight = net.tokens_kept(x, 0.5)
    kept = weight > 0
    assert float(weight.mean()) == pytest.approx(1.0) and float(kept.float().mean()) == pytest.approx(0.5)
    with torch.no_grad():
        y = net(x, c, keep=keep)
        hidden = net(torch.where(kept, x, x + 5), c, keep=keep)
        assert torch.equal(hidden.masked_select(kept), y.masked_select(kept))
        shown = net(torch.where(kept, x + 5, x), c, keep=keep)
    assert float((shown - y).abs().max()) > 1e-3


def test_masked_training_is_cheaper():
    """Half of the tokens: less than 0.65 of the operations of the blocks (spec 003, 16-I: 1.6 times as fast)."""
    from torch.utils.flop_counter import FlopCounterMode

    net = make(masked=True, depth=8, full_blocks=1)
    x, c = torch.randn(1, 2, 32, 32), torch.zeros(1)
    counts = []
    for keep in (None, net.tokens_kept(x, 0.5)[0]):
        with FlopCounterMode(display=False) as counter:
            net(x, c, keep=keep)
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0] / 1.6


def test_masking_reaches_the_blank_token():
    """The blank token has a gradient where tokens are dropped."""
    net, (x, c) = make(masked=True), inputs()
    keep, _ = net.tokens_kept(x, 0.5)
    net(x, c, keep=keep).square().sum().backward()
    assert net.blank.grad is not None and net.blank.grad.any()


def test_checkpointing_changes_no_gradient():
    """Recomputing the blocks gives bit-identical gradients, with masking too."""
    grads = []
    for on in (False, True):
        net, (x, c) = make(checkpointing=on, masked=True), inputs()
        torch.manual_seed(0)
        net(x, c, keep=net.tokens_kept(x, 0.5)[0]).square().mean().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_samples_do_not_see_each_other_and_bfloat16_is_close():
    """Sample 0 is the same whatever sample 1 is; autocast moves the answer by its rounding only."""
    net, (x, c) = make(), inputs()
    other = torch.stack([x[0], 5 * x[1] + 3])
    with torch.no_grad():
        y = net(x, c)
        torch.testing.assert_close(net(other, c)[0], y[0])
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x, c)
    assert 0 < float((half.float() - y).abs().mean()) < 0.05 * float(y.abs().mean() + y.std())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 0}, "patch=0"),
        ({"depth": 0}, "depth=0"),
        ({"head_channels": 10}, "width=24 with head_channels=10"),
        ({"positions": "learned"}, "Known: rope, sincos"),
        ({"full_blocks": 4}, "full_blocks=4; it must be 0 to depth=3"),
    ],
)
def test_bad_settings(settings, message):
    """Settings that describe no network are named."""
    with pytest.raises(VerisimError, match=message):
        make(**settings)
    with pytest.raises(VerisimError, match="spatial_dims=1"):
        make(1)


def test_bad_inputs():
    """Sizes that are no multiple of the patch, conditions it lacks, and masking it was not built for."""
    net, (x, c) = make(), inputs()
    with pytest.raises(VerisimError, match=r"multiple of 2 .* Nearest legal: 6x12 or 8x12"):
        net(x[:, :, :7], c)
    with pytest.raises(VerisimError, match="built without classes"):
        net(x, c, torch.zeros(2, dtype=torch.long))
    with pytest.raises(VerisimError, match="built with vector=0"):
        net(x, c, vector=torch.zeros(2, 3))
    with pytest.raises(VerisimError, match="masked=True"):
        net(x, c, keep=torch.zeros(2, 3, dtype=torch.long))
