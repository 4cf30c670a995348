"""The literal PixelCNN: exact where it must be, and at fault where source 004 says it was."""

import pytest
import torch

from verisim.data.spec import ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.models.autoregressive.heads import Categorical, log_probs
from verisim.models.autoregressive.pixelcnn import PixelCNN


def shaken(model, seed=0):
    """Random weights and batch statistics everywhere, so that no path is zero by its initial value."""
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=g) * 0.1
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) * 0.1)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) + 0.5)
    return model


def small(size=(8, 8), **settings):
    return shaken(PixelCNN(ImageSpec(size), **{"layers": 3, "channels": 6, **settings})).eval()


def input_gradients(net, size, row, col, batch=1):
    """|d output[0, :, row, col] / d x| for a random direction of the output, (batch, H, W)."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(batch, 1, *size, generator=g, dtype=torch.float64).requires_grad_()
    out = net(x)[0, :, row, col]
    (out * torch.randn(out.shape, generator=g, dtype=out.dtype)).sum().backward()
    return x.grad[:, 0].abs()


@pytest.mark.parametrize(("layers", "channels", "count"), [(8, 64, 1_425_728), (10, 400, 70_690_256)])
def test_parameter_counts_of_the_source(layers, channels, count):
    """Golden: source 004 gives 1.42 M as coded and 70.7 M as claimed; defaults are what was coded."""
    with torch.device("meta"):
        model = PixelCNN(ImageSpec((64, 64)), layers=layers, channels=channels)
    assert sum(p.numel() for p in model.parameters()) == count
    with torch.device("meta"):
        default = PixelCNN(ImageSpec((64, 64)))
    assert sum(p.numel() for p in default.parameters()) == 1_425_728


def test_causal_in_eval_mode():
    """No output may see its own or a later pixel, or the factorisation is no probability."""
    net = small().net.double()
    for i in range(64):
        grad = input_gradients(net, (8, 8), i // 8, i % 8).flatten()
        assert (grad[i:] == 0).all()


def test_blind_spot():
    """The control of the gated model: stacked masks never see part of the earlier pixels, above right."""
    net = small().net.double()
    grad = input_gradients(net, (8, 8), 7, 0)[0]
    assert (grad[6, 4:] == 0).all()  # one row up, more than half a kernel to the right
    assert (grad[6, :4] > 0).all()


def test_batch_norm_in_training_mode_sees_the_future_and_the_neighbours():
    """Negative control: with batch statistics the same network is not causal, nor are images independent."""
    model = small()
    net = model.net.double().train()
    grad = input_gradients(net, (8, 8), 0, 0, batch=2)
    assert (grad[0].flatten()[1:] > 0).any()  # later pixels of the image itself
    assert (grad[1] > 0).any()  # another image of the batch
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    alone = model.nll_bits(model.net.float().train(), x[:2], None)
    together = model.nll_bits(model.net.train(), x, None)[:2]
    assert not torch.allclose(alone, together, atol=1e-3)


def test_likelihood_is_exact_and_independent_of_the_batch():
    """bits_per_dim runs in eval mode, gives one number per image, and sums the chain rule of a tiny image."""
    model = small((2, 3)).train()
    x = torch.rand(5, 1, 2, 3) * 2 - 1
    bits = model.bits_per_dim(x)
    assert model.net.training  # the mode is put back
    assert bits.shape == (5,) and not model.likelihood_is_bound
    torch.testing.assert_close(bits[:2], model.bits_per_dim(x[:2]))
    level = ((x + 1) * 127.5).round().long()
    p = model.net.eval()(level / 255.0).softmax(1).gather(1, level)[:, 0]  # (5, 2, 3)
    torch.testing.assert_close(bits, -p.log2().flatten(1).mean(1))


def test_softmax_is_normalised():
    """256 grey levels share probability 1."""
    head = Categorical()
    params = torch.randn(7, head.channels, dtype=torch.float64) * 5
    torch.testing.assert_close(log_probs(head, params).exp().sum(-1), torch.ones(7, dtype=torch.float64))


def test_softmax_draws_follow_the_probabilities():
    """A fine grid of uniforms reproduces the distribution; temperature 1 adds nothing."""
    head = Categorical(5)
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -9.0])
    u = (torch.arange(10_000) + 0.5)[:, None].expand(-1, 2) / 10_000
    drawn = head.draw(logits.expand(10_000, 5), u, 1.0)
    share = torch.bincount(drawn, minlength=5) / 10_000
    torch.testing.assert_close(share, logits.softmax(0), atol=2e-4, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (9, 5), (5, 11)])
def test_cached_sampling_is_the_full_forward(size):
    """Same logits along an image, hence the same samples from the same generator."""
    model = small(size)
    x = torch.rand(3, 1, *size)
    with torch.no_grad():
        full = model.net(x)
        stepper = model.cached_stepper(model.net, 3, None)
        for row in range(size[0]):
            stepper.begin_row(row)
            for col in range(size[1]):
                torch.testing.assert_close(stepper.params(row, col), full[:, :, row, col], atol=1e-5, rtol=0)
                stepper.write(row, col, x[:, 0, row, col])
    fast = model.sample(4, generator=torch.Generator().manual_seed(5))
    model.configure_sampling(cached=False)
    slow = model.sample(4, generator=torch.Generator().manual_seed(5))
    assert torch.equal(fast, slow)
    assert fast.shape == (4, 1, *size) and fast.dtype == torch.float32 and fast.abs().max() <= 1


def test_learns():
    """A few steps lower the loss, so that the masks leave gradients alive."""
    torch.manual_seed(0)
    model = PixelCNN(ImageSpec((8, 8)), layers=2, channels=16, lr=1e-2)
    optimizer = model.optimizer()
    x = torch.randint(0, 2, (32, 1, 8, 8)) * 2.0 - 1
    losses = []
    for _ in range(30):
        loss, parts = model.training_loss(x, None)
        assert loss.shape == (32,) and set(parts) == {"bits_per_dim"}
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert losses[-1] < 2.0 < 6.0 < losses[0]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: PixelCNN(ImageSpec((8, 8)), num_classes=2), "gated_pixelcnn"),
        (lambda: PixelCNN(ImageSpec((8, 8), channels=3)), "one channel"),
        (lambda: PixelCNN(ImageSpec((8, 8, 8))), "2D"),
        (lambda: PixelCNN(ImageSpec((8, 8)), kernel=4), "odd kernel"),
        (lambda: small().configure_sampling(temperature=0.0), "above 0"),
        (lambda: small().configure_sampling(temprature=1.0), "temperature"),
        (lambda: small().sample(2, torch.tensor([0, 1])), "without classes"),
    ],
)
def test_errors_say_what_to_do(build, text):
    """What cannot be done is refused in words."""
    with pytest.raises(VerisimError, match=text):
        build()


def test_wrong_range_is_refused():
    """[0, 255] fed where [-1, 1] is meant upset source 004's ranking."""
    with pytest.raises(RangeError, match="values in"):
        small().bits_per_dim(torch.rand(2, 1, 8, 8) * 255)
