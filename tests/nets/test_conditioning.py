"""Conditions of the U-Net: off they are not there, fresh they change nothing, awake their gradients arrive."""

import pytest
import torch

from verisim.errors import VerisimError
from verisim.nets import UNet
from verisim.nets.conditioning import SPADE, CrossAttention

SIZES = {2: (8, 16), 3: (8, 8, 4)}
SETTINGS = {"channels": (8, 16), "blocks": 1, "head_channels": 8}
WIDTHS = {"tokens": 6, "spatial": 3, "vector": 5}


def make(dims=2, awake=False, **extra):
    torch.manual_seed(0)
    net = UNet(dims, 2, 3, **SETTINGS, **extra)
    torch.manual_seed(1)
    torch.nn.init.normal_(net.conv_out.weight)  # else a fresh network answers 0 whatever it is told
    for block in [*net.down, *net.middle, *net.up]:
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    if awake:
        for p in net.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)
    return net


def inputs(dims=2):
    g = torch.Generator().manual_seed(2)
    return torch.randn(2, 2, *SIZES[dims], generator=g), torch.tensor([-0.5, 0.5])


def condition(name, dims=2):
    g = torch.Generator().manual_seed(3)
    shapes = {"tokens": (2, 4, 6), "spatial": (2, 3, *SIZES[dims]), "vector": (2, 5)}
    return torch.randn(shapes[name], generator=g)


def test_off_by_default():
    """Without conditions the network has the parameters that it had, name by name."""
    names = set(dict(make().named_parameters()))
    assert not any(part in k for k in names for part in ("cross", "spade", "vector"))
    for name, width in WIDTHS.items():
        assert names < set(dict(make(**{name: width}).named_parameters()))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", WIDTHS)
def test_a_fresh_condition_changes_nothing(name, dims):
    """Bit for bit the answer of the network without it, given its weights, for any condition or none."""
    plain, net = make(dims), make(dims, **{name: WIDTHS[name]})
    missing = net.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys and not missing.unexpected_keys
    x, c = inputs(dims)
    with torch.no_grad():
        assert torch.equal(net(x, c, **{name: condition(name, dims)}), plain(x, c))
        assert torch.equal(net(x, c), plain(x, c))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", WIDTHS)
def test_an_awake_condition_matters_and_gets_its_gradient(name, dims):
    """Every value of the condition has a gradient, every parameter too; sample 0 sees its own condition only."""
    net = make(dims, awake=True, **{name: WIDTHS[name]})
    x, c = inputs(dims)
    given = condition(name, dims).requires_grad_(True)
    y = net(x, c, **{name: given})
    y.square().sum().backward()
    assert bool((given.grad != 0).flatten(1).any(1).all())
    if name == "spatial":  # nearest neighbour: finest features read every pixel
        assert float((given.grad != 0).float().mean()) > 0.99
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    other = given.detach().clone()
    other[1] += 1.0
    with torch.no_grad():
        z = net(x, c, **{name: other})
    torch.testing.assert_close(z[0], y[0])
    assert float((z[1] - y[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("name", WIDTHS)
def test_a_fresh_condition_can_be_learned(name):
    """The zero layers themselves get a gradient at the start, so training can wake them."""
    net = make(**{name: WIDTHS[name]})
    x, c = inputs()
    net(x, c, **{name: condition(name)}).square().sum().backward()
    zero = [
        k
        for k, p in net.named_parameters()
        if not p.any() and ("cross" in k or "spade" in k or "vector" in k)
    ]
    grads = dict(net.named_parameters())
    assert zero and any(grads[k].grad is not None and grads[k].grad.any() for k in zero)


def test_padding_tokens_are_not_seen():
    """A masked token does not matter, an unmasked one does; all masked is an empty sequence, not NaN."""
    net = make(awake=True, tokens=6)
    x, c = inputs()
    tokens = condition("tokens")
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    noisy = torch.where(mask[..., None], tokens, 100.0)
    with torch.no_grad():
        a, b = (net(x, c, tokens=t, token_mask=mask) for t in (tokens, noisy))
        torch.testing.assert_close(a, b)
        assert not torch.allclose(a, net(x, c, tokens=tokens))
        torch.testing.assert_close(net(x, c, tokens=tokens, token_mask=torch.zeros_like(mask)), net(x, c))


def test_cross_attention_is_its_formula():
    """softmax(Q K^T / sqrt d) V over the learned token and the given ones, head by head."""
    torch.manual_seed(0)
    layer = CrossAttention(8, 5, 4)
    torch.nn.init.normal_(layer.out.weight)
    torch.nn.init.normal_(layer.nothing)
    x, tokens = torch.randn(1, 8, 2, 3), torch.randn(1, 4, 5)
    memory = torch.cat([layer.nothing, tokens], 1)[0]
    q = layer.q(layer.norm(x).flatten(2)[0].T)
    k, v = layer.kv(memory).chunk(2, 1)
    heads = [torch.softmax(q[:, h] @ k[:, h].T / 2, 1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
    expected = x + layer.out(torch.cat(heads, 1)).T.reshape(1, 8, 2, 3)
    torch.testing.assert_close(layer(x, tokens), expected)


def test_spade_needs_its_one():
    """Spec 003, eq. 2.31: the multiplier is 1 + gamma. A fresh layer is the identity; with gamma alone it erases."""
    layer = SPADE(torch.nn.Conv2d, 4, 2)
    h, m = torch.randn(1, 4, 6, 6), torch.randn(1, 2, 12, 12)
    assert torch.equal(layer(h, m), h)
    gamma, _ = layer.out(torch.nn.functional.silu(layer.read(m[..., ::2, ::2]))).chunk(2, 1)
    assert not (h * gamma).any()


def test_labels_stay_labels_when_resized():
    """A one-hot map is read at lower resolution by nearest neighbour: no mixtures of classes arise."""
    seen = []
    layer = SPADE(torch.nn.Conv2d, 4, 2)
    layer.read.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    layer(torch.randn(1, 4, 3, 3), (torch.rand(1, 2, 12, 12) > 0.5).float())
    assert set(seen[0].unique().tolist()) <= {0.0, 1.0} and seen[0].shape[2:] == (3, 3)


def test_checkpointing_and_bfloat16():
    """Conditions pass through recomputation unchanged, and through autocast."""
    grads = []
    for on in (False, True):
        net = make(awake=True, checkpointing=on, **WIDTHS)
        x, c = inputs()
        net(x, c, **{k: condition(k) for k in WIDTHS}).square().mean().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.isfinite(net(x, c, **{k: condition(k) for k in WIDTHS})).all()


@pytest.mark.parametrize("name", WIDTHS)
def test_conditions_that_do_not_fit(name):
    """A condition the net was built without, or of another width, is refused with the remedy."""
    x, c = inputs()
    with pytest.raises(
        VerisimError, match=rf"built with {name}=0 but got a condition '{name}' of width {WIDTHS[name]}"
    ):
        make()(x, c, **{name: condition(name)})
    with pytest.raises(VerisimError, match=rf"Build it with {name}={WIDTHS[name]}"):
        make(**{name: 9})(x, c, **{name: condition(name)})
    with pytest.raises(VerisimError, match="heads of 3"):
        CrossAttention(8, 4, 3)
