"""Adversarial diffusion: one step is a GAN, the players are apart, the walk is what was asked for."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.adversarial.losses import SOFTPLUS
from verisim.models.diffusion.adversarial_steps import AdversarialSteps
from verisim.seeding import generator

SMALL = {
    "channels": (8, 16),
    "blocks": 1,
    "attention": (False, False),
    "critic_channels": (8, 16, 16),
    "latent": 8,
    "style": 16,
    "style_layers": 1,
}


def build(size=(8, 8), num_classes=0, **settings):
    """A model that steps without a Lightning trainer."""
    torch.manual_seed(0)
    model = AdversarialSteps(ImageSpec(size), num_classes, **{**SMALL, **settings})
    model.manual_backward = lambda loss: loss.backward()
    optimizers = model.optimizer()
    model.optimizers = lambda: optimizers
    model.seen = []
    model.log_parts = lambda parts: model.seen.append({k: float(v.detach().mean()) for k, v in parts.items()})
    return model


def images(n=8, size=(8, 8), seed=0):
    return torch.rand(n, 1, *size, generator=generator(seed)) * 2 - 1


def state(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def moved(net, before):
    return any(not torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_one_step_is_a_plain_gan():
    """n = 1: the real side is the image itself, the fake is G's own output, the losses are those of a GAN."""
    model = build(steps=1, r1=0.0)
    x = images()
    torch.manual_seed(3)
    before, after, level = model.draw_pair(x)
    assert torch.equal(before, x) and torch.equal(level, torch.ones(8, dtype=torch.long))
    torch.manual_seed(4)
    fake = model.draw_fake(after, level, None)
    torch.manual_seed(4)
    z = torch.randn(8, 8)
    own = model.net(after, model.chain.told(level), z)
    assert torch.equal(fake, own) and float(fake.detach().std()) > 0
    scores = [model.critic(v, after, model.chain.told(level)) for v in (x, own)]
    loss, _ = model.critic_loss(before, fake, after, level, None)
    torch.testing.assert_close(loss, SOFTPLUS.discriminator(*scores))
    torch.testing.assert_close(model.generator_loss(fake, after, level, None), SOFTPLUS.generator(scores[1]))
    many = build(steps=4)
    torch.manual_seed(3)
    before, after, level = many.draw_pair(x)
    assert not torch.equal(before, x)  # control: with more steps it is not
    fake = many.draw_fake(after, level, None).detach()
    assert float(fake[level > 1].abs().max()) > 1  # noise of the level below, not an image


def test_each_player_moves_its_own_network_only():
    """D learns from fakes without G, and G through a frozen D."""
    model = build(r1_interval=1)
    _, opt_d = model.optimizers()
    before, after, level = model.draw_pair(images())
    fake = model.draw_fake(after, level, None)
    g, d = state(model.net), state(model.critic)
    model.descend(model.critic_loss(before, fake.detach(), after, level, None)[0], [opt_d], 0.0)
    assert moved(model.critic, d) and not moved(model.net, g)
    g, d = state(model.net), state(model.critic)
    model.training_step({"image": images()}, 0)
    assert moved(model.critic, d) and moved(model.net, g)
    assert all(p.requires_grad for p in model.critic.parameters())


class Linear(nn.Module):
    """A critic whose gradient in x_{i-1} is known: w everywhere."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, before, after, told, label=None):
        return (self.w * before).flatten(1).sum(1) + after.flatten(1).sum(1)


def test_r1_of_a_linear_critic_and_its_rhythm():
    """1/2 ||grad||^2 = 1/2 64 w^2, in the previous image alone; every third step, three times as heavy."""
    model = build(r1=0.5, r1_interval=3)
    model.critic = Linear(0.25)
    before, after, level = model.draw_pair(images())
    fake = model.draw_fake(after, level, None)
    for model.step in range(4):
        loss, parts = model.critic_loss(before, fake, after, level, None)
        scores = (model.critic(v, after, None) for v in (before, fake))
        extra = loss - SOFTPLUS.discriminator(*scores)
        golden = 0.5 * 64 * 0.25**2 if model.step % 3 == 0 else 0.0
        assert ("r1" in parts) == (golden > 0)
        torch.testing.assert_close(extra, torch.full((8,), 0.5 * 3 * golden), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 8)])
def test_a_sample_visits_the_levels_asked_for(size):
    """Two, four and eight steps; the last x0 is the image; classes change it where there are any."""
    model = build(size, num_classes=2, steps=8, critic_channels=(8, 16)).eval()
    for steps in (2, 4, 8):
        model.configure_sampling(steps=steps)
        seen = []
        x = model.sample(2, torch.tensor(1), generator(0), seen.append)
        assert x.shape == (2, 1, *size) and len(seen) == steps
        assert torch.equal(x, seen[-1].x0) and all(a.sigma > b.sigma for a, b in pairwise(seen))
    other = model.sample(2, torch.tensor(0), generator(0))
    assert not torch.equal(other, x)
    with pytest.raises(VerisimError, match="9 steps asked of a model trained on 8 levels"):
        model.configure_sampling(steps=9)
    assert model.options.steps == 8


def test_z_and_level_reach_the_image():
    """Another z or another level gives another x0 from the same x_i, from the start."""
    model = build().eval()
    x, z = torch.randn(1, 1, 8, 8), torch.randn(2, 1, 8)
    a, b = (model.net(x, model.chain.told(torch.tensor([4])), v) for v in z)
    c = model.net(x, model.chain.told(torch.tensor([1])), z[0])
    assert not torch.equal(a, b) and not torch.equal(a, c)
    order = torch.tensor([1, 2])
    scores = model.critic(x.expand(2, -1, -1, -1), x.expand(2, -1, -1, -1), model.chain.told(order))
    assert float((scores[0] - scores[1]).detach().abs()) > 0


def train(model, x, steps, batch=16):
    for step in range(steps):
        model.begin_step()
        model.training_step({"image": x[torch.randint(len(x), (batch,))]}, step)
        model.end_step()


def test_resuming_gives_the_same_weights():
    """2 + 2 steps are 4 steps, bit for bit."""
    whole, parts = build(), build()
    train(whole, images(16), 4, 4)
    train(parts, images(16), 2, 4)
    torch.manual_seed(99)
    train(parts, images(16), 2, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters()))


def test_it_learns_where_the_light_is():
    """Images bright on the left: after 60 steps samples are much nearer to that mean than before."""
    x = torch.full((64, 1, 8, 8), -0.6) + 0.2 * torch.randn(64, 1, 8, 8, generator=generator(1))
    x[..., :4] += 1.2
    model = build(steps=2, lr=3e-3, critic_lr=3e-3)
    model.enable_ema(0.9)

    def distance():
        return float((model.sample(64, generator=generator(2)).mean(0) - x.mean(0)).square().mean())

    before = distance()
    train(model, x.clamp(-1, 1), 60)
    assert all(v == v for parts in model.seen for v in parts.values())
    assert distance() < 0.25 * before


def test_the_learning_rate_falls_to_its_share():
    """Half a cosine from 1 to last_lr; constant where the end is unknown."""
    model = build(last_lr=0.0625)
    assert [model.lr_scale(k, 100) for k in (0, 50, 100)] == pytest.approx([1, 0.53125, 0.0625])
    assert model.lr_scale(50, None) == 1.0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"critic_channels": (8, 8, 8, 8, 8)}, "8x8 cannot be halved 4 times.*2 to 4 widths"),
        ({"steps": 0}, "at least 1"),
        ({"r1_interval": 0}, "r1_interval 1 or more"),
    ],
)
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(VerisimError, match=text):
        build(**settings)
