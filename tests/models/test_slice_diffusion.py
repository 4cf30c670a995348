"""Slice-conditional diffusion: sets and plans are what they claim, known slices stay, the loss asks for targets alone."""

from itertools import pairwise

import pytest
import torch

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.models.diffusion.slice_sets import draw_slice_sets, plan_slices, progression
from verisim.models.diffusion.slice_tv import smooth_slices

NET = {"channels": (8, 16), "blocks": 1, "attention": (False, True), "head_channels": 8, "budget": 4}


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def made(size=(6, 8, 8), classes=0, **settings):
    torch.manual_seed(0)
    model = build_model("slice_diffusion", {**NET, **settings}, ImageSpec(size), classes)
    model.configure_sampling(steps=3)
    return model


@pytest.mark.parametrize(("depth", "budget"), [(32, 8), (5, 8), (1, 4), (7, 2)])
def test_slice_sets(depth, budget):
    """Distinct slices within the budget, one at least to learn, each slot one role; padding has none."""
    g = seeded()
    given = 0
    for _ in range(200):
        s = draw_slice_sets(depth, budget, g)
        used = s.target | s.observed
        assert len(s.numbers) == min(depth, budget) and bool(s.target.any())
        assert not bool((s.target & s.observed).any())
        numbers = s.numbers[used].tolist()
        assert len(set(numbers)) == len(numbers) and all(0 <= i < depth for i in numbers)
        given += int(s.observed.any())
    assert given > 20 or depth == 1


def test_progressions_are_near_and_far():
    """Equal spacing (to rounding) from 1 up to half of the volume, all within it."""
    g, widest = seeded(), set()
    for _ in range(500):
        p = progression(32, 8, g)
        gaps = {b - a for a, b in pairwise(p)}
        assert 0 <= p[0] and p[-1] < 32 and len(p) <= 8
        assert not gaps or max(gaps) - min(gaps) <= 1
        widest |= gaps
    assert {1, 2, 4, 8} <= widest and max(widest) >= 16


@pytest.mark.parametrize("kind", ["autoregressive", "hierarchical"])
@pytest.mark.parametrize(
    ("depth", "budget", "overlap"), [(32, 8, 0), (13, 4, 1), (3, 8, 0), (1, 2, 0), (9, 4, 3)]
)
def test_plans_draw_every_slice_once(kind, depth, budget, overlap):
    """No slice twice, none missing, nothing given that is not there, never more than the budget."""
    done = []
    for given, targets in plan_slices(depth, budget, kind, overlap):
        assert set(given) <= set(done) and not set(targets) & set(done)
        assert len(given) + len(targets) <= budget and targets
        done += targets
    assert sorted(done) == list(range(depth))


def test_plans_are_what_they_are_called():
    """Golden: the published order with half of the window given; coarse to fine; around what is known."""
    assert plan_slices(8, 4) == [([], [0, 1, 2, 3]), ([2, 3], [4, 5]), ([4, 5], [6, 7])]
    assert plan_slices(7, 4, "hierarchical") == [([], [0, 2, 4, 6]), ([2, 4], [1, 3]), ([3, 4, 6], [5])]
    assert [t for _, t in plan_slices(6, 4, known=(0, 3))] == [[1, 2], [4, 5]]


def test_the_loss_asks_for_targets_alone():
    """TRAP-C: given and padded slices have no gradient; the weights of the others are 1 / their share."""
    model, x, seen = made((9, 8, 8), budget=6), torch.rand(8, 1, 9, 8, 8, generator=seeded()) * 2 - 1, []

    def answer(net, frames, *rest):
        seen.append((frames, torch.zeros_like(frames, requires_grad=True)))
        return seen[-1][1]

    model._answer = answer
    torch.manual_seed(5)
    sets = [draw_slice_sets(9, 6) for _ in range(8)]
    torch.manual_seed(5)
    model.training_loss(x, None)[0].sum().backward()
    frames, out = seen[0]
    size = out.grad.flatten(2).abs().amax(2)
    for row, s in enumerate(sets):
        assert bool((size[row][s.target] > 0).all()) and float(size[row][~s.target].sum()) == 0
        clean = x[row, 0, s.numbers]
        at = s.observed
        assert torch.equal(frames[row, at, 0], clean[at])  # given slices enter as they are
        assert not torch.allclose(frames[row, s.target, 0], clean[s.target], atol=0.05)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_known_slices_stay_and_all_others_are_drawn(axis):
    """Along each axis; total variation leaves the known slices alone too."""
    size = (6, 10, 8)
    model = made(size, axis=axis).eval()
    model.configure_sampling(tv=0.05)
    x = torch.rand(2, 1, *size, generator=seeded()) * 2 - 1
    y = model.complete(x, (1, 4), generator=seeded())
    model.spec.check(y)
    a, b = x.movedim(2 + axis, 0), y.movedim(2 + axis, 0)
    for z in range(size[axis]):
        assert torch.equal(a[z], b[z]) == (z in (1, 4))
    assert torch.equal(y, model.complete(x, (1, 4), generator=seeded()))


def test_a_given_slice_tells_the_others_their_grey():
    """Volumes of one grey, -0.6 or 0.6: after 60 steps the slices drawn beside a given one have its grey."""
    model = made((4, 4, 4), channels=(16,), attention=(True,), lr=1e-2, parametrisation="x0").train()
    grey = torch.tensor([-0.6, 0.6]).repeat(8).view(16, 1, 1, 1, 1)
    x = grey.expand(16, 1, 4, 4, 4)
    optimizer = model.optimizer()
    for _ in range(60):
        model.begin_step()
        optimizer.zero_grad()
        model.training_loss(x, None)[0].mean().backward()
        optimizer.step()
        model.end_step()
    model.eval().configure_sampling(steps=4, sampler="euler")
    y = model.complete(x[:8], (0,), generator=seeded())
    assert float((y - x[:8]).abs().mean()) < 0.15
    wrong = model.complete(x[:8], (0,), generator=seeded()) - x[:8].flip(0)
    assert float(wrong.abs().mean()) > 1.0  # control: the other grey is far


def test_classes_and_single_slices():
    """A 2D image is a volume of one slice; classes go through."""
    model = made((12, 10), classes=2).eval()
    x = model.sample(3, torch.tensor([0, 1, 0]), seeded())
    assert x.shape == (3, 1, 12, 10)
    loss, _ = model.training_loss(x, torch.tensor([0, 1, 0]))
    assert loss.shape == (3,) and bool(torch.isfinite(loss).all())


def test_total_variation_has_its_closed_forms():
    """Two slices move towards each other by the weight until they meet; a step of two plateaus by weight / length."""
    pair = torch.tensor([0.0, 1.0]).view(1, 1, 2)
    torch.testing.assert_close(smooth_slices(pair, 0.2).flatten(), torch.tensor([0.2, 0.8]))
    torch.testing.assert_close(smooth_slices(pair, 0.7).flatten(), torch.tensor([0.5, 0.5]))
    step = torch.tensor([0.0] * 2 + [1.0] * 4).view(1, 1, 6)
    wanted = torch.tensor([0.1] * 2 + [0.95] * 4)
    torch.testing.assert_close(smooth_slices(step, 0.2, rounds=2000).flatten(), wanted, atol=1e-4, rtol=0)
    assert torch.equal(smooth_slices(step, 0.0), step)
    v = torch.randn(2, 1, 5, 3, 3, generator=seeded())
    torch.testing.assert_close(smooth_slices(v, 0.1).mean(2), v.mean(2))  # the mean stays


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: made(axis=3), "axis = 3: slices lie along 0"),
        (lambda: made(budget=1), "budget = 1: at least 2 slices"),
        (lambda: made().configure_sampling(plan="random"), "Unknown plan 'random'"),
        (lambda: made().configure_sampling(sampler="pndm"), "Unknown sampler 'pndm'"),
        (lambda: made().configure_sampling(tv=-1.0), "tv = -1"),
        (lambda: plan_slices(9, 4, overlap=4), "1 to 3 of 4 slices can be given"),
        (lambda: plan_slices(9, 4, known=(9,)), "this volume has slices 0 to 8"),
    ],
)
def test_what_cannot_be_is_refused(call, text):
    with pytest.raises(VerisimError, match=text):
        call()
