"""Adversarial losses, diversity, R1 and augmentation: identities that hold exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verisim.errors import VerisimError
from verisim.models.adversarial.augment import AUGMENTATIONS, augment, parse_policy
from verisim.models.adversarial.losses import (
    DIVERSITY,
    LOSSES,
    gradient_penalty,
    hinged_diversity,
    mean_pairwise_distance,
    r1_penalty,
    unbounded_diversity,
)

G = torch.Generator().manual_seed(0)


def test_logits_equal_bce_on_a_sigmoid_where_it_does_not_saturate():
    """softplus is the source's BCE without rounding: equal for |s| < 8, values and gradients."""
    real, fake = (torch.linspace(-8, 8, 33).requires_grad_() for _ in range(2))
    for a, b in ((LOSSES["bce"], LOSSES["softplus"]),):
        torch.testing.assert_close(
            a.discriminator(real, fake), b.discriminator(real, fake), rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(a.generator(fake), b.generator(fake), rtol=1e-3, atol=1e-4)
        one = torch.autograd.grad(a.generator(fake).sum(), fake)[0]
        two = torch.autograd.grad(b.generator(fake).sum(), fake)[0]
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_only_the_literal_loss_saturates():
    """Negative control: at s = -200 BCELoss is clamped at 100 with no gradient; softplus goes on."""
    s = torch.tensor([-200.0], requires_grad=True)
    literal, logits = LOSSES["bce"].generator(s), LOSSES["softplus"].generator(s)
    assert float(literal) == 100 and float(logits) == 200
    assert float(torch.autograd.grad(literal, s)[0]) == 0
    assert float(torch.autograd.grad(logits, s)[0]) == -1


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_per_sample_and_points_the_right_way(name):
    """Better discrimination lowers D's loss; more convincing fakes lower G's."""
    loss = LOSSES[name]
    good, bad = torch.full((4,), 0.5), torch.full((4,), -0.5)
    assert loss.discriminator(good, bad).shape == (4,)
    assert (loss.discriminator(good, bad) < loss.discriminator(bad, good)).all()
    assert (loss.generator(good) < loss.generator(bad)).all()


def test_pairwise_distance_equals_the_sources_loop():
    """torch.pdist replaces the O(B^2) Python loop, to rounding."""
    x = torch.randn(6, 1, 8, 8, generator=G)
    loop = [(x[i] - x[j]).norm() for i in range(6) for j in range(i + 1, 6)]
    total = 2 / (6 * 5) * torch.stack(loop).sum()
    torch.testing.assert_close(mean_pairwise_distance(x), total)
    torch.testing.assert_close(unbounded_diversity(x, x), -total)
    assert float(mean_pairwise_distance(x[:1])) == 0


@pytest.mark.parametrize("name", DIVERSITY)
def test_diversity_has_finite_gradients_for_identical_images(name):
    """A collapsed batch is where the term is needed: its gradient must not be NaN there."""
    fake = torch.zeros(4, 1, 8, 8, requires_grad=True)
    DIVERSITY[name](fake, torch.randn(4, 1, 8, 8, generator=G)).backward()
    assert torch.isfinite(fake.grad).all()


def test_unbounded_diversity_grows_with_the_side_and_hinged_does_not():
    """The suspected cause of the collapse at 128 px: the literal term doubles when the side doubles."""
    real = {s: torch.rand(16, 1, s, s, generator=G) * 2 - 1 for s in (32, 64)}
    fake = {s: 0.1 * x for s, x in real.items()}
    literal = float(unbounded_diversity(fake[64], real[64]) / unbounded_diversity(fake[32], real[32]))
    hinged = float(hinged_diversity(fake[64], real[64]) / hinged_diversity(fake[32], real[32]))
    assert literal == pytest.approx(2, rel=0.02)
    assert hinged == pytest.approx(1, rel=0.02)


def test_hinged_diversity_is_content_with_real_diversity():
    """Bounded: nothing is gained beyond the real images' own mean distance."""
    real = torch.randn(8, 1, 8, 8, generator=G)
    assert float(hinged_diversity(2 * real, real)) == 0
    assert float(hinged_diversity(0.5 * real, real)) > 0


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight():
    """s = w . x has gradient w everywhere: R1 = ||w||^2 / 2 for every image."""
    d = nn.Linear(12, 1)
    x = torch.randn(5, 12, generator=G, requires_grad=True)
    penalty = r1_penalty(d(x).flatten(), x)
    torch.testing.assert_close(penalty, (0.5 * d.weight.square().sum()).expand(5))
    penalty.mean().backward()
    torch.testing.assert_close(d.weight.grad, d.weight.detach())


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(4, 2, 16, 16), (4, 1, 8, 8, 8), (4, 1, 16, 12)])
def test_augmentations_keep_shape_and_pass_gradients(name, shape):
    """The generator learns through them, in 2D and 3D."""
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    out = AUGMENTATIONS[name](x)
    assert out.shape == x.shape and not torch.equal(out, x)
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all() and float(x.grad.abs().sum()) > 0


def test_translation_shifts_and_never_mirrors():
    """Each image is the original moved by up to an eighth; an arrow keeps its direction."""
    torch.manual_seed(0)
    x = torch.zeros(64, 1, 16, 16)
    x[:, 0, 8, 8], x[:, 0, 8, 9] = 2.0, 1.0  # bright, then dim to its right
    out = AUGMENTATIONS["translation"](x)
    where = (out == 2).nonzero()
    assert len(where) == 64
    assert (where[:, 2:] - 8).abs().max() == 2
    for b, _, i, j in where.tolist():
        assert out[b, 0, i, j + 1] == 1


def test_cutout_and_brightness_and_contrast_do_what_they_say():
    """A hole of at most a quarter of the image; one offset per image; the mean is kept."""
    torch.manual_seed(0)
    x = torch.randn(64, 1, 16, 16) + 3
    share = (AUGMENTATIONS["cutout"](x) == 0).float().flatten(1).mean(1)
    assert 0 < float(share.min()) and float(share.max()) == pytest.approx(0.25)
    offset = (AUGMENTATIONS["brightness"](x) - x).flatten(1)
    assert float(offset.std(1).max()) < 1e-5 and float(offset.abs().max()) <= 0.5
    torch.testing.assert_close(AUGMENTATIONS["contrast"](x).flatten(1).mean(1), x.flatten(1).mean(1))


def test_policy_is_parsed_and_checked():
    """'' is no augmentation; an unknown word is an error that lists those there are."""
    assert parse_policy("") == () and parse_policy("cutout, contrast") == ("cutout", "contrast")
    x = torch.ones(2, 1, 16, 16)
    assert augment(x, ()) is x
    with pytest.raises(VerisimError, match="Unknown augmentation 'flip'"):
        parse_policy("translation,flip")


def test_wasserstein_loss_is_minus_the_difference_of_means():
    """D maximises mean(real) - mean(fake), without saturation at any score."""
    real, fake = torch.tensor([3.0, 1000.0]), torch.tensor([-2.0, -1000.0])
    torch.testing.assert_close(LOSSES["wasserstein"].discriminator(real, fake), torch.tensor([-5.0, -2000.0]))


@pytest.mark.parametrize("slope", [0.5, 1.0, 3.0])
def test_gradient_penalty_of_a_linear_critic(slope):
    """D(x) = slope <w, x> with ||w|| = 1 has gradient norm `slope` everywhere: the penalty is (slope - 1)^2."""
    w = torch.randn(1, 8, 8, generator=G)
    w = (w / w.norm()).requires_grad_()
    x = torch.randn(2, 4, 1, 8, 8, generator=G)
    found = gradient_penalty(lambda y: slope * (y * w).flatten(1).sum(1), x[0], x[1])
    torch.testing.assert_close(found, torch.full((4,), (slope - 1) ** 2), rtol=1e-4, atol=1e-6)
    found.sum().backward()  # second order: it teaches the critic
    assert (float(w.grad.abs().max()) > 1e-3) == (slope != 1.0)


def test_gradient_penalty_looks_between_real_and_fake():
    """With D(x) = x^2 / 2 the gradient norm is |x|: its values lie between those of both images, and vary."""
    torch.manual_seed(0)
    real, fake = torch.full((64, 1), 3.0), torch.full((64, 1), 1.0)
    norm = gradient_penalty(lambda x: 0.5 * x.square().sum(1), real, fake).sqrt() + 1
    assert 1.0 <= float(norm.min()) < 1.2 and 2.8 < float(norm.max()) <= 3.0
