"""Priors over code maps: causal, exactly uniform at first, cached = naive, and near a known entropy."""

import math

import pytest
import torch

from verisim.errors import VerisimError
from verisim.models.autoregressive.code_prior import PRIORS, PriorSettings, build_prior

KINDS = sorted(PRIORS)
GRIDS = [("gated_pixelcnn", (4, 5)), ("transformer", (4, 5)), ("transformer", (2, 3, 4))]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(kind, grid=(4, 5), codes=6, classes=0, shake=True, **settings):
    """A small prior; shaken: random weights everywhere, so that no path is zero by its initial value."""
    torch.manual_seed(0)
    small = {"layers": 2, "channels": 8, "heads": 2, "dropout": 0.0, "num_classes": classes, **settings}
    prior = build_prior(kind, PriorSettings(codes, grid, **small))
    if shake:
        for p in prior.parameters():
            p.data += 0.2 * torch.randn(p.shape, generator=seeded(1))
    return prior.eval()


def maps(n, grid, codes=6, seed=0):
    return torch.randint(codes, (n, *grid), generator=seeded(seed))


@pytest.mark.parametrize(("kind", "grid"), GRIDS)
@pytest.mark.parametrize("training", [False, True])
def test_causal_by_autograd(kind, grid, training):
    """The logits of position i have a gradient to every earlier code and to no other, in raster order."""
    prior = made(kind, grid, layers=3, dropout=0.2 if training else 0.0).double().train(training)
    rows, width = prior.raster
    n = rows * width
    for i in range(n):
        x = torch.randn(1, prior.embed.embedding_dim, rows, width, generator=seeded(2), dtype=torch.float64)
        out = prior.body(x.requires_grad_(), None).flatten(2)[0, :, i]
        (out * torch.randn(out.shape, generator=seeded(3), dtype=out.dtype)).sum().backward()
        seen = x.grad.abs().sum(1).flatten()
        assert (seen[i:] == 0).all()
        assert training or (seen[:i] > 0).all()


@pytest.mark.parametrize(("kind", "grid"), GRIDS)
def test_a_later_code_changes_no_earlier_probability(kind, grid):
    """The same through the codes themselves, and every code does change something after it."""
    prior = made(kind, grid)
    a = maps(1, grid)
    before = prior.nll_bits(a).flatten()
    for i in range(a.numel()):
        b = a.clone()
        b.view(-1)[i] = (b.view(-1)[i] + 1) % 6
        after = prior.nll_bits(b).flatten()
        torch.testing.assert_close(after[:i], before[:i], rtol=0, atol=1e-5)
        assert i + 1 == a.numel() or (after[i + 1 :] - before[i + 1 :]).abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "grid"), GRIDS)
def test_an_untrained_prior_is_uniform(kind, grid):
    """log2 K bits for every code, exactly: what the source sampled from."""
    prior = made(kind, grid, codes=64, classes=3, shake=False)
    bits = prior.nll_bits(maps(2, grid, 64), torch.tensor([0, 2]))
    assert bits.shape == (2, *grid) and torch.allclose(bits, torch.full_like(bits, 6.0), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_sum_to_one(kind):
    """All 81 maps of 2x2 positions and 3 codes."""
    prior = made(kind, (2, 2), codes=3)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).view(81, 2, 2)
    bits = prior.nll_bits(every).double().flatten(1).sum(1)
    assert float((2**-bits).sum().detach()) == pytest.approx(1, abs=1e-5)
    assert float(bits.max() - bits.min()) > 0.1


@pytest.mark.parametrize(("kind", "grid"), GRIDS)
@pytest.mark.parametrize("classes", [0, 3])
def test_cached_logits_are_those_of_the_full_forward(kind, grid, classes):
    """Memory may change the time, never the numbers."""
    prior = made(kind, grid, classes=classes)
    codes = maps(3, grid)
    label = prior.labels(3, torch.tensor([2, 0, 1]) if classes else None)
    rows, width = prior.raster
    with torch.no_grad():
        full = prior(codes, label).reshape(3, -1, rows, width)
        stepper = prior.cached_stepper(3, label)
        for r in range(rows):
            stepper.begin_row(r)
            for c in range(width):
                torch.testing.assert_close(stepper.params(r, c), full[:, :, r, c], atol=1e-5, rtol=1e-5)
                stepper.write(r, c, prior.embed(codes.reshape(3, rows, width)[:, r, c]))


@pytest.mark.parametrize(("kind", "grid"), GRIDS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 3}])
def test_cached_and_naive_draw_the_same_maps(kind, grid, options):
    """Same generator, same maps, over more than one chunk; another generator gives others."""
    prior = made(kind, grid, classes=2)
    label = torch.arange(34) % 2
    fast = prior.sample(34, label, seeded(7), **options)
    assert torch.equal(fast, prior.sample(34, label, seeded(7), cached=False, **options))
    assert not torch.equal(fast, prior.sample(34, label, seeded(8), **options))
    assert fast.shape == (34, *grid) and fast.dtype == torch.int64


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_keeps_the_likeliest(kind):
    """top_k = 1 is greedy and needs no chance; top_k = 2 draws nothing else; 0 draws everything."""
    prior = made(kind, (1, 1), codes=9)
    order = prior(torch.zeros(1, 1, 1, dtype=torch.long))[0, :, 0, 0].argsort(descending=True)
    drawn = {k: set(prior.sample(400, None, seeded(), top_k=k).flatten().tolist()) for k in (0, 1, 2)}
    assert drawn[1] == {int(order[0])} and drawn[2] == set(order[:2].tolist()) and len(drawn[0]) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_probabilities(kind):
    """Relative frequencies of the first code are its softmax, sharpened by temperature."""
    prior = made(kind, (1, 1), codes=5)
    logits = prior(torch.zeros(1, 1, 1, dtype=torch.long))[0, :, 0, 0]
    for t in (1.0, 0.5):
        drawn = prior.sample(3000, None, seeded(3), temperature=t).flatten()
        share = torch.bincount(drawn, minlength=5) / 3000
        torch.testing.assert_close(share, (logits / t).softmax(0), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_no_class_differ(kind):
    """Every class, and "no class", is a distribution of its own; an unconditional prior has one."""
    prior = made(kind, classes=2)
    codes = maps(4, (4, 5))
    zero, one = (prior.nll_bits(codes, torch.full((4,), c)) for c in (0, 1))
    none = prior.nll_bits(codes)
    assert torch.equal(none, prior.nll_bits(codes, torch.full((4,), 2)))
    assert (zero != one).any() and (zero != none).any() and (one != none).any()


def markov_maps(n, size, codes, seed, stay=0.85):
    """Rows of Markov chains over `codes` states: uniform start, `stay` to remain. Maps and exact bits per code."""
    g = seeded(seed)
    found = torch.randint(codes, (n, size, size), generator=g)
    other = torch.randint(1, codes, (n, size, size), generator=g)
    keep = torch.rand(n, size, size, generator=g) < stay
    for c in range(1, size):
        moved = (found[:, :, c - 1] + other[:, :, c]) % codes
        found[:, :, c] = torch.where(keep[:, :, c], found[:, :, c - 1], moved)
    step = -stay * math.log2(stay) - (1 - stay) * math.log2((1 - stay) / (codes - 1))
    return found, (math.log2(codes) + (size - 1) * step) / size


@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_a_known_source(kind):
    """Within 8 % of the entropy of unordered Markov chains, and never below it; shuffled maps cost more."""
    x, entropy = markov_maps(1500, 6, 8, seed=0)
    test, _ = markov_maps(400, 6, 8, seed=1)
    prior = made(kind, (6, 6), codes=8, shake=False, channels=32).train()
    steps, optimizer = 110, torch.optim.Adam(prior.parameters(), 1e-2 if kind == "gated_pixelcnn" else 5e-3)
    for k in range(steps):
        pick = torch.randint(len(x), (32,), generator=seeded(k))
        optimizer.param_groups[0]["lr"] *= 0.98
        optimizer.zero_grad()
        prior.nll_bits(x[pick]).mean().backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
    prior.eval()
    with torch.no_grad():
        bits = float(prior.nll_bits(test).mean())
        order = torch.randperm(36, generator=seeded(5))
        shuffled = float(prior.nll_bits(test.flatten(1)[:, order].view_as(test)).mean())
    assert entropy * 0.98 < bits < entropy * 1.08
    assert shuffled > 2 * bits
    drawn = prior.sample(64, None, seeded(9))
    same = (drawn[:, :, 1:] == drawn[:, :, :-1]).float().mean()
    assert abs(float(same) - 0.85) < 0.03  # samples keep the chain's habit


def test_bad_settings_get_one_sentence():
    """Three axes for the PixelCNN, heads that do not divide, impossible numbers, sampling out of range."""
    with pytest.raises(VerisimError, match=r"2D code maps; these have 3 axes. Use --model.prior transformer"):
        made("gated_pixelcnn", (2, 2, 2))
    with pytest.raises(VerisimError, match=r"width 10 cannot be split into 4 heads.*e\.g\. 8"):
        made("transformer", channels=10, heads=4)
    with pytest.raises(VerisimError, match="0 <= dropout < 1"):
        made("transformer", dropout=1.0)
    with pytest.raises(VerisimError, match=r"Unknown prior 'transfomer'\. Did you mean 'transformer'"):
        build_prior("transfomer", PriorSettings(4, (2, 2)))
    prior = made("transformer")
    with pytest.raises(VerisimError, match="temperature 0 is not possible"):
        prior.sample(1, None, seeded(), temperature=0.0)
    with pytest.raises(VerisimError, match="top_k is -1"):
        prior.sample(1, None, seeded(), top_k=-1)
