"""Source 004's protocol: exact values, its flaws on a switch, and what the repair refuses."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from verisim.data.spec import Images, ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.metrics.controls import blurred, noise_like
from verisim.metrics.protocols.thesis import (
    SOURCE_RANGES,
    ThesisClassifier,
    classifier_score,
    discriminator_loss,
    thesis_classifier,
)


def blobs(n, seed):
    """Dark 32 x 32 images with a bright oval, in [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    x = -0.7 + 0.2 * F.interpolate(torch.randn(n, 1, 8, 8, generator=g), (32, 32), mode="bilinear")
    x[:, :, 10:22, 8:24] += 0.9
    return Images(x.clamp(-1, 1), ImageSpec((32, 32)))


class Discriminator(nn.Module):
    """A small DCGAN discriminator with batch norm and a sigmoid; (B, 1, 1, 1) as the source's."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 16, 4, 2, 1),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 1, 8),
        )

    def forward(self, x):
        return self.net(x).sigmoid()


def trained_discriminator():
    """Learns in [-1, 1] to tell blobs from blurred blobs with noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        d = Discriminator()
        real, fake = (
            blobs(128, 1).pixels,
            noise_like(blobs(128, 2), 128, torch.Generator().manual_seed(0)).pixels,
        )
        fake = (0.5 * fake + 0.5 * blobs(128, 2).pixels).clamp(-1, 1)
        opt = torch.optim.Adam(d.parameters(), 1e-3)
        for _ in range(25):
            loss = F.binary_cross_entropy(d(real), torch.ones(128, 1, 1, 1))
            loss = loss + F.binary_cross_entropy(d(fake), torch.zeros(128, 1, 1, 1))
            opt.zero_grad()
            loss.backward()
            opt.step()
    return d


class Constant(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return torch.full((len(x),), self.p)


def test_discriminator_loss_closed_forms():
    """A judge that always says p scores -ln p - ln(1-p); 0.5 gives 2 ln 2; saturation is clamped at 100."""
    real, fake = blobs(20, 1), blobs(20, 2)
    for p in (0.5, 0.9):
        r = discriminator_loss(Constant(p), real, fake, family="vae", fixed=True)
        assert r.score == pytest.approx(-math.log(p) - math.log(1 - p), rel=1e-5) and r.n == 20
    assert discriminator_loss(Constant(1.0), real, fake, family="vae").fake_term == 100
    logit = discriminator_loss(Constant(0.0), real, fake, family="gan", output="logit")
    assert logit.score == pytest.approx(2 * math.log(2), rel=1e-6)


def test_range_bug_changes_the_score_of_the_same_samples():
    """The artefact: same samples, range bug on and off, the D-loss moves a lot; the GAN alone is spared."""
    d, real, fake = trained_discriminator(), blobs(128, 3), blurred(blobs(128, 4))
    off = discriminator_loss(d, real, fake, family="vae", range_bug=False, train_mode=False)
    on = discriminator_loss(d, real, fake, family="vae", range_bug=True, train_mode=False)
    assert abs(on.fake_term - off.fake_term) > max(0.5, 0.5 * off.fake_term)
    assert on.real_term == off.real_term  # the real term does not depend on the generator at all
    assert on.range_bug and not off.range_bug
    gan = [
        discriminator_loss(d, real, fake, family="gan", range_bug=b, train_mode=False) for b in (True, False)
    ]
    assert gan[0].score == gan[1].score and not gan[0].range_bug
    assert {k for k, v in SOURCE_RANGES.items() if v == (0.0, 1.0)} == {"vae", "autoregressive", "diffusion"}


def test_train_mode_changes_the_score_but_not_the_judge():
    """Batch statistics of an all-fake batch move the score; the given judge keeps weights, buffers, mode."""
    d, real, fake = trained_discriminator().eval(), blobs(128, 3), blurred(blobs(128, 4))
    before = {k: v.clone() for k, v in d.state_dict().items()}
    literal = discriminator_loss(d, real, fake, family="gan")
    fixed = discriminator_loss(d, real, fake, family="gan", fixed=True)
    assert literal.train_mode and not fixed.train_mode and literal.score != fixed.score
    assert not d.training and all(torch.equal(v, before[k]) for k, v in d.state_dict().items())


def test_wrong_range_and_family_are_refused():
    """Undeclared ranges cannot slip in; the bug only happens where it is asked for."""
    real = blobs(20, 1)
    with pytest.raises(RangeError, match="one size and range"):
        discriminator_loss(Constant(0.5), real, real.to_range(0, 1), family="vae")
    with pytest.raises(RangeError, match=r"take \[-1, 1\]"):
        classifier_score(real.to_range(0, 1), real.to_range(0, 1), family="vae")
    with pytest.raises(VerisimError, match="Did you mean 'diffusion'"):
        discriminator_loss(Constant(0.5), real, real, family="difusion")
    with pytest.raises(VerisimError, match="2D"):
        thesis_classifier(1, (8, 8, 8), 0)


def test_classifier_parameters():
    """The network as coded: 320 + 18496 + (64 * 8 * 8 + 1) * 128 + 129 parameters at 32 pixels."""
    n = sum(p.numel() for p in ThesisClassifier(1, (32, 32)).parameters())
    assert n == 320 + 18496 + (64 * 8 * 8 + 1) * 128 + 129


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_untrained_classifier_answers_half_to_everything(seed):
    """Good, blurred, noisy and black images alike: mean p(real) = 0.5 +- 0.05, the score read as evidence."""
    real = blobs(60, 1)
    sets = [blobs(60, 2), blurred(real), noise_like(real, 60, torch.Generator().manual_seed(0))]
    sets.append(replace(real, pixels=torch.full_like(real.pixels, -1.0)))
    for fake in sets:
        r = classifier_score(real, fake, family="vae", untrained=True, seed=seed)
        assert abs(r.mean_p_real - 0.5) < 0.05 and r.auc is None


def test_fixed_refuses_an_untrained_judge():
    """The repair scores nothing with a judge that cannot see noise."""
    for seed in range(4):
        with pytest.raises(VerisimError, match="never trained"):
            classifier_score(blobs(60, 1), blobs(60, 2), family="vae", untrained=True, fixed=True, seed=seed)


def test_trained_and_fixed_tells_fakes():
    """Trained, the same network drives obvious fakes to 0 and reports a held-out AUC near 1."""
    real = blobs(80, 1)
    fake = noise_like(real, 80, torch.Generator().manual_seed(3))
    r = classifier_score(real, fake, family="gan", fixed=True, epochs=4)
    assert r.auc > 0.99 and r.mean_p_real < 0.2 and r.control_auc >= 0.99
    assert r.n_score == 16 and r.n_train == 64
