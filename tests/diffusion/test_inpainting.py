"""RePaint on two correlated pixels, where the conditional distribution is known."""

import pytest
import torch

from verisim.diffusion.inpainting import repaint
from verisim.diffusion.samplers import ddpm
from verisim.diffusion.schedules import make_sigmas
from verisim.errors import VerisimError

RHO, STD = 0.9, 0.5
COVARIANCE = STD**2 * torch.tensor([[1.0, RHO], [RHO, 1.0]])


def denoise(x, sigma):  # (B, 2), optimal for N(0, COVARIANCE)
    total = COVARIANCE + torch.diag_embed(sigma[:, None].expand(-1, 2) ** 2)
    return torch.einsum("ij,bjk,bk->bi", COVARIANCE, torch.linalg.inv(total), x)


def paint(mask, known, n=4000, steps=30, **kwargs):
    g = torch.Generator().manual_seed(0)
    sigmas = make_sigmas("angle", steps, STD)
    x = float(sigmas[0]) * torch.randn(n, 2, generator=g)
    return repaint(denoise, x, sigmas, known, mask, generator=g, **kwargs)


@pytest.mark.parametrize("jump", [1, 5])
def test_the_unknown_pixel_follows_the_known_one(jump):
    """Given 0.8 the other pixel has mean 0.72 and std 0.22; resampling gets there, without it it does not."""
    mask, known = torch.tensor([[True, False]]), torch.tensor([[0.8, 0.0]])
    y = paint(mask, known, resamples=10, jump=jump)
    assert torch.equal(y[:, 0], torch.full((4000,), 0.8))
    assert float(y[:, 1].mean()) == pytest.approx(RHO * 0.8, abs=0.04)
    assert float(y[:, 1].std()) == pytest.approx(STD * (1 - RHO**2) ** 0.5, abs=0.04)
    once = paint(mask, known, resamples=1)
    assert abs(float(once[:, 1].mean()) - RHO * 0.8) > 2 * abs(float(y[:, 1].mean()) - RHO * 0.8)


def test_masks_that_cover_everything_or_nothing():
    """All known returns the image; nothing known is plain ancestral sampling in distribution."""
    known = torch.tensor([[0.3, -0.2]])
    assert torch.equal(paint(torch.ones(1, 2, dtype=torch.bool), known, n=5), known.expand(5, 2))
    free = paint(torch.zeros(1, 2, dtype=torch.bool), known, resamples=1)
    g = torch.Generator().manual_seed(1)
    sigmas = make_sigmas("angle", 30, STD)
    plain = ddpm(denoise, float(sigmas[0]) * torch.randn(4000, 2, generator=g), sigmas, generator=g)
    torch.testing.assert_close(free.T.cov(), plain.T.cov(), atol=0.03, rtol=0)


def test_number_of_evaluations():
    """n steps, each walked `resamples` times, whatever the jump (also one that does not divide n)."""
    for jump in (1, 4, 7, 100):
        seen = []
        paint(
            torch.tensor([[True, False]]),
            torch.zeros(1, 2),
            n=1,
            resamples=3,
            jump=jump,
            callback=seen.append,
        )
        assert len(seen) == 90


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.ones(1, 2), "must be bool"), (torch.ones(1, 3, dtype=torch.bool), r"shape \(1, 3\)")],
)
def test_bad_masks(mask, message):
    """A float mask or one of another size is refused with its remedy."""
    with pytest.raises(VerisimError, match=message):
        paint(mask, torch.zeros(1, 2), n=3)
