"""The gated PixelCNN: causal without blind spot, normalised, cached = naive, and near the true entropy."""

import math

import pytest
import torch

from verisim.data.spec import ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.models.autoregressive.baselines import left_neighbour_laplace_bits, pixel_histogram_bits
from verisim.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from verisim.models.autoregressive.gated_stack import covering_dilations, reach
from verisim.models.autoregressive.heads import LogisticMixture, dequantise, log_probs, quantise
from verisim.models.autoregressive.pixelcnn import PixelCNN


def shaken(model, seed=0):
    """Random weights everywhere, so that no path is zero by its initial value."""
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=g) * 0.1
    return model


def small(size=(8, 8), **settings):
    settings = {"layers": 3, "channels": 8, "components": 3, **settings}
    return shaken(GatedPixelCNN(ImageSpec(size), **settings)).eval()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def input_gradients(net, size, row, col):
    """|d output[:, row, col] / d x| for a random direction of the output, (H * W,)."""
    x = torch.rand(1, 1, *size, generator=generator(1), dtype=torch.float64).requires_grad_()
    out = net(x)[0, :, row, col]
    (out * torch.randn(out.shape, generator=generator(2), dtype=out.dtype)).sum().backward()
    return x.grad.flatten().abs()


# --- causality ------------------------------------------------------------------------------------


def test_causal_and_no_blind_spot():
    """Each output depends on all earlier pixels and on nothing else: the autoregressive factorisation."""
    net = small().net.double()
    for i in range(64):
        grad = input_gradients(net, (8, 8), i // 8, i % 8)
        assert (grad[i:] == 0).all()
        assert (grad[:i] > 0).all()


def test_causal_in_training_mode():
    """Normalisation by pixel keeps training causal too, which batch norm does not."""
    net = small(dropout=0.2).net.double().train()
    for i in (0, 9, 63):
        assert (input_gradients(net, (8, 8), i // 8, i % 8)[i:] == 0).all()


@pytest.mark.parametrize(("row", "col"), [(63, 0), (63, 63), (40, 31)])
def test_the_default_sees_all_of_a_64_pixel_image(row, col):
    """Source 004's model reached 24 of 64 rows; ten layers here reach every earlier pixel."""
    spec = ImageSpec((64, 64))
    net = shaken(GatedPixelCNN(spec, channels=4, components=2)).net.double()
    grad = input_gradients(net, (64, 64), row, col)
    i = 64 * row + col
    assert (grad[:i] > 0).all() and (grad[i:] == 0).all()


@pytest.mark.parametrize("size", [32, 33, 64, 128])
def test_chosen_dilations_cover_the_image(size):
    """The default depth covers each supported size; too few layers take the longest cycle."""
    assert reach(covering_dilations(10, (size, size))) >= size - 1
    assert covering_dilations(3, (64, 64)) == (1, 2, 4)


# --- the distribution of a pixel ------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 32, 256])
@pytest.mark.parametrize("spread", [0.5, 5.0, 50.0])
def test_mixture_is_normalised(levels, spread):
    """The bins telescope: probabilities of all levels sum to 1, however narrow or far away."""
    head = LogisticMixture(components=4, levels=levels)
    params = torch.randn(50, head.channels, generator=generator(), dtype=torch.float64) * spread
    total = log_probs(head, params).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(50, dtype=torch.float64), atol=1e-12, rtol=0)
    total = log_probs(head, params.float()).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(50), atol=1e-4, rtol=0)


def test_mixture_equals_the_difference_of_two_sigmoids():
    """The stable formula against the plain one, edge bins included, where the plain one is accurate."""
    head = LogisticMixture(components=2, levels=8)
    params = torch.randn(6, generator=generator(3), dtype=torch.float64)
    log_weight, mean, log_scale = head.split(params)
    edges = torch.arange(-0.5, 8.0, dtype=torch.float64)
    cdf = torch.sigmoid((edges[:, None] - mean) / log_scale.exp())  # (9, 2)
    cdf[0], cdf[-1] = 0, 1
    plain = (cdf.diff(dim=0) * log_weight.exp()).sum(1)
    torch.testing.assert_close(log_probs(head, params).exp(), plain, atol=1e-12, rtol=0)


def test_mixture_stays_finite_far_away():
    """Hopeless predictions cost many bits, but neither the loss nor its gradient is NaN or Inf."""
    head = LogisticMixture(components=2)
    params = torch.tensor([[0.0, 80.0, 50.0, 50.0, -60.0, -60.0], [0.0, 0.0, -3.0, 3.0, 90.0, 200.0]])
    params.requires_grad_()
    for level in (0, 1, 128, 255):
        log_p = head.log_prob(params, torch.full((2,), level))
        (grad,) = torch.autograd.grad(log_p.sum(), params)
        assert torch.isfinite(log_p).all() and torch.isfinite(grad).all()


def test_mixture_draws_follow_the_probabilities():
    """The quantile draw has exactly the discretised distribution, tails in the edge bins."""
    head = LogisticMixture(components=3, levels=6)
    params = torch.randn(head.channels, generator=generator(4))
    n = 400
    u = (torch.arange(n) + 0.5) / n
    grid = torch.cartesian_prod(u, u)  # (n * n, 2)
    share = torch.bincount(head.draw(params.expand(n * n, -1), grid, 1.0), minlength=6) / n**2
    torch.testing.assert_close(share, log_probs(head, params).exp(), atol=5e-3, rtol=0)


def test_uniform_numbers_of_zero_and_almost_one_are_harmless():
    """The ends of the uniform's range give the ends of the grey scale, not NaN."""
    head = LogisticMixture(components=1)
    params = torch.tensor([[0.0, 0.0, 8.0]]).expand(2, -1)
    drawn = head.draw(params, torch.tensor([[0.0, 0.0], [0.999999, 1 - 2.0**-24]]), 1.0)
    assert drawn.tolist() == [0, 255]


@pytest.mark.parametrize("levels", [2, 32, 256])
def test_quantise_inverts_dequantise(levels):
    """Grey levels survive the trip to [-1, 1] and back, so samples have the likelihood they were drawn with."""
    level = torch.arange(levels)
    assert torch.equal(quantise(dequantise(level, levels), levels), level)


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (9, 5), (5, 11)])
@pytest.mark.parametrize("classes", [0, 3])
def test_cached_logits_are_those_of_the_full_forward(size, classes):
    """The cache may change the time, never the numbers; dilations beyond the image included."""
    model = small(size, num_classes=classes, layers=4)
    x = torch.rand(3, 1, *size, generator=generator()) * 2 - 1
    label = torch.tensor([2, 0, 1]) if classes else None
    with torch.no_grad():
        full = model.net(x, label)
        stepper = model.cached_stepper(model.net, 3, label)
        for row in range(size[0]):
            stepper.begin_row(row)
            for col in range(size[1]):
                torch.testing.assert_close(stepper.params(row, col), full[:, :, row, col], atol=1e-4, rtol=0)
                stepper.write(row, col, x[:, 0, row, col])


@pytest.mark.parametrize("classes", [0, 3])
def test_cached_and_naive_draw_the_same_images(classes):
    """Same generator, same images: uniforms are drawn in one fixed order."""
    model = small((9, 7), num_classes=classes, dropout=0.3).train()
    model.configure_sampling(temperature=0.9)
    fast = model.sample(5, generator=generator(7))
    assert torch.equal(fast, model.sample(5, generator=generator(7)))
    assert not torch.equal(fast, model.sample(5, generator=generator(8)))
    model.configure_sampling(cached=False)
    assert torch.equal(fast, model.sample(5, generator=generator(7)))
    assert model.net.training  # the mode is put back
    assert fast.shape == (5, 1, 9, 7) and fast.dtype == torch.float32 and fast.abs().max() <= 1


def test_samples_are_grey_levels():
    """With 4 levels nothing between them comes out."""
    x = small(levels=4).sample(6, generator=generator())
    assert torch.equal(x, dequantise(quantise(x, 4), 4))


def test_temperature_narrows():
    """A low temperature approaches the mode of each pixel, so samples differ less."""
    model = small()
    spread = []
    for t in (1.0, 0.5, 0.01):
        model.configure_sampling(temperature=t)
        spread.append(model.sample(64, generator=generator()).std(0).mean().item())
    assert spread[0] > spread[1] > spread[2]


def test_sampling_uses_the_average():
    """With EMA on, samples and likelihoods are the average's, and training weights do not matter."""
    model = small()
    model.enable_ema(0.9)
    before = model.sample(2, generator=generator())
    bits = model.bits_per_dim(before)
    shaken(model.net, seed=9)
    assert torch.equal(before, model.sample(2, generator=generator()))
    assert torch.equal(bits, model.bits_per_dim(before))


# --- likelihood -----------------------------------------------------------------------------------


def test_likelihood_sums_to_one_over_all_images():
    """Every image of 2x2 pixels and 3 levels: 81 probabilities with sum 1 - exact, not a bound."""
    model = small((2, 2), levels=3)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(81, 1, 2, 2)
    bits = model.bits_per_dim(dequantise(every, 3)).double()
    assert not model.likelihood_is_bound
    assert (2 ** (-4 * bits)).sum().item() == pytest.approx(1, abs=1e-5)


def test_without_a_condition_the_likelihood_averages_over_classes():
    """p(x) = mean over classes of p(x | class), which sampling without a condition draws from."""
    model = small((3, 3), num_classes=3, levels=4)
    x = model.sample(5, generator=generator())
    each = torch.stack([model.bits_per_dim(x, torch.full((5,), c)) for c in range(3)])
    mixed = -(2.0 ** (-9 * each)).mean(0).log2() / 9
    torch.testing.assert_close(model.bits_per_dim(x), mixed, atol=1e-5, rtol=0)
    assert (each[0] != each[1]).all()


def markov_images(n, size, seed, stay=0.85):
    """Rows of 4-level Markov chains: uniform start, `stay` to remain, else any other level. Exact bits/dim."""
    g = generator(seed)
    level = torch.randint(4, (n, size, size), generator=g)
    other = torch.randint(1, 4, (n, size, size), generator=g)
    keep = torch.rand(n, size, size, generator=g) < stay
    for c in range(1, size):
        moved = (level[:, :, c - 1] + other[:, :, c]) % 4
        level[:, :, c] = torch.where(keep[:, :, c], level[:, :, c - 1], moved)
    step = -stay * math.log2(stay) - (1 - stay) * math.log2((1 - stay) / 3)
    return dequantise(level[:, None] * 85, 256), (2 + (size - 1) * step) / size


def train(model, x, label=None, steps=100, batch=64):
    optimizer = model.optimizer()
    model.train()
    for k in range(steps):
        torch.manual_seed(k)
        pick = torch.randint(len(x), (batch,))
        loss, _ = model.training_loss(x[pick], None if label is None else label[pick])
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.995
    return model


def test_bits_of_a_known_source():
    """Within 5 % of a Markov chain's entropy, and far below both baselines on the same images."""
    x, entropy = markov_images(2000, 8, seed=0)
    test, _ = markov_images(500, 8, seed=1)
    torch.manual_seed(0)
    model = GatedPixelCNN(
        ImageSpec((8, 8)), layers=2, channels=16, components=6, levels=4, dropout=0.0, lr=1e-2
    )
    train(model, x, steps=150, batch=32)
    bits = model.bits_per_dim(test).mean().item()
    assert entropy * 0.98 < bits < entropy * 1.05
    assert bits < pixel_histogram_bits(x, test).mean() * 0.8
    assert bits < left_neighbour_laplace_bits(x, test).mean() * 0.8


def tilted_planes(n, size, noise, seed):
    """Planes of random height and tilt plus Gaussian noise of `noise` grey levels, in [-1, 1]."""
    g = generator(seed)
    t = torch.linspace(-1, 1, size)
    a, b, c = (torch.randn(n, 1, 1, 1, generator=g) * s for s in (0.3, 0.2, 0.2))
    plane = a + b * t + c * t[:, None]
    return (plane + torch.randn(n, 1, size, size, generator=g) * noise / 127.5).clamp(-1, 1)


def test_bits_of_8_bit_images():
    """All 256 levels: not below the entropy of the noise, and under both baselines and the literal model."""
    x, test = tilted_planes(1000, 8, 8.0, 0), tilted_planes(300, 8, 8.0, 1)
    torch.manual_seed(0)
    model = GatedPixelCNN(ImageSpec((8, 8)), layers=2, channels=16, components=3, dropout=0.0, lr=5e-3)
    train(model, x, steps=150, batch=32)
    bits = model.bits_per_dim(test).mean().item()
    assert math.log2(8 * math.sqrt(2 * math.pi * math.e)) < bits
    assert bits < pixel_histogram_bits(x, test).mean() - 0.3
    assert bits < left_neighbour_laplace_bits(x, test).mean() - 0.1
    literal = PixelCNN(ImageSpec((8, 8)), layers=3, channels=32, lr=5e-3)  # more weights than the gated one
    train(literal, x, steps=150, batch=32)
    assert bits < literal.bits_per_dim(test).mean() - 0.2


def gradients(model, x, bf16):
    """Every parameter's gradient of the mean loss, flattened, with or without bfloat16 autocast."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = model.training_loss(x, None)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    return {name: p.grad.flatten().clone() for name, p in model.net.named_parameters()}


@pytest.mark.parametrize("channels", [16, 24, 40])
def test_bfloat16_gradients_are_right(channels):
    """Kernels' gradients agree with float32, also at widths where oneDNN's channels-last kernel does not;
    and every parameter has one, so DDP has nothing unused to complain about."""
    model = small((32, 32), channels=channels, dropout=0.0, layers=4)
    x = torch.rand(12, 1, 32, 32, generator=generator()) * 2 - 1
    exact, rough = gradients(model, x, False), gradients(model, x, True)
    for name in exact:
        if "conv" in name and "weight" in name:
            assert (rough[name] - exact[name]).norm() < 0.15 * exact[name].norm(), name


def test_classes_change_the_samples():
    """Dark and bright classes: samples follow the label, and the right label explains an image better."""
    g = generator(3)
    label = torch.randint(2, (400,), generator=g)
    x = (torch.randn(400, 1, 8, 8, generator=g) * 0.1 + (label * 1.0 - 0.5)[:, None, None, None]).clamp(-1, 1)
    torch.manual_seed(0)
    model = GatedPixelCNN(
        ImageSpec((8, 8)), num_classes=2, layers=2, channels=16, components=2, lr=1e-2, levels=32
    )
    train(model, x, label, steps=100, batch=32)
    dark, bright = (model.sample(16, torch.full((16,), c), generator()).mean() for c in (0, 1))
    assert dark < -0.2 and bright > 0.2
    assert (model.bits_per_dim(x, label) < model.bits_per_dim(x, 1 - label)).all()


# --- baselines ------------------------------------------------------------------------------------


def test_baselines_are_normalised():
    """Summed over every value of one pixel, given the others, each baseline's probability is 1."""
    fit = torch.randint(0, 256, (20, 1, 1, 2), dtype=torch.uint8, generator=generator())
    every = torch.cartesian_prod(torch.arange(256), torch.arange(256)).to(torch.uint8).view(-1, 1, 1, 2)
    for baseline in (pixel_histogram_bits, left_neighbour_laplace_bits):
        bits = baseline(fit, every)
        assert bits.dtype == torch.float64
        assert (2 ** (-2 * bits)).sum().item() == pytest.approx(1, abs=1e-9)


def test_baselines_near_known_entropies():
    """Independent uniform pixels have 8 bits; a row-constant image costs next to nothing after its left."""
    noise = torch.randint(0, 256, (400, 1, 6, 6), dtype=torch.uint8, generator=generator())
    assert pixel_histogram_bits(noise[:300], noise[300:]).mean().item() == pytest.approx(8, abs=0.05)
    assert left_neighbour_laplace_bits(noise[:300], noise[300:]).mean().item() == pytest.approx(8, abs=0.05)
    rows = noise[..., :1].expand(-1, 1, 6, 6)
    assert left_neighbour_laplace_bits(rows[:300], rows[300:]).mean().item() == pytest.approx(8 / 6, abs=0.05)
    still = noise[:1].expand(400, 1, 6, 6)
    assert pixel_histogram_bits(still[:300], still[300:]).mean().item() < 0.05


def test_baselines_take_floats_in_range_only():
    """uint8 and [-1, 1] agree; other ranges and shapes are refused."""
    x = torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8, generator=generator())
    for baseline in (pixel_histogram_bits, left_neighbour_laplace_bits):
        torch.testing.assert_close(baseline(x, x), baseline(dequantise(x, 256), dequantise(x, 256)))
        with pytest.raises(RangeError, match="Give uint8"):
            baseline(x, x.float())
        with pytest.raises(VerisimError, match="one shape"):
            baseline(x, x[..., :3])


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: GatedPixelCNN(ImageSpec((8, 8), channels=3)), "one channel"),
        (lambda: GatedPixelCNN(ImageSpec((8, 8, 8))), "2D"),
        (lambda: GatedPixelCNN(ImageSpec((8, 8)), dropout=1.0), "dropout"),
        (lambda: GatedPixelCNN(ImageSpec((8, 8)), dilations=(1, 2)), "layers=10"),
        (lambda: GatedPixelCNN(ImageSpec((8, 8)), components=0), "components >= 1"),
        (lambda: GatedPixelCNN(ImageSpec((8, 8)), levels=1), "levels >= 2"),
        (lambda: small(num_classes=2).sample(2, torch.tensor([0, 2])), "0...1"),
        (lambda: small(num_classes=2).training_loss(torch.zeros(2, 1, 8, 8), None), "no label"),
        (lambda: small().configure_sampling(temperature=float("nan")), "finite and above 0"),
    ],
)
def test_errors_say_what_to_do(build, text):
    """What cannot be done is refused in words."""
    with pytest.raises(VerisimError, match=text):
        build()
