"""Reconstruction scores: closed forms, torchmetrics where its definition agrees, scale rule, bad input."""

import math
from itertools import pairwise

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as torch_ssim

from verisim.data.spec import Images, ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.metrics.reconstruction import (
    K1,
    WEIGHTS,
    ms_ssim,
    mse,
    psnr,
    scale_weights,
    score_reconstructions,
    ssim,
)

UNIT = {"low": 0.0, "high": 1.0}


def originals_and_copies(size, n=3, channels=1, noise=0.1, seed=0):
    """Smooth random images in [0, 1] and noisy copies, float64."""
    g = torch.Generator().manual_seed(seed)
    coarse = [max(2, s // 8) for s in size]
    x = torch.rand(n, channels, *coarse, generator=g, dtype=torch.float64)
    mode = "bicubic" if len(size) == 2 else "trilinear"
    x = torch.nn.functional.interpolate(x, size=size, mode=mode, align_corners=False).clamp(0, 1)
    return x, (x + noise * torch.randn(x.shape, generator=g, dtype=torch.float64)).clamp(0, 1)


def inside(image):
    """The part of torchmetrics' map whose windows lie wholly in the image; its own mean has reflected borders."""
    return image[(..., *[slice(5, -5)] * (image.ndim - 2))].flatten(1).mean(1)


def torch_full(x, y):
    return inside(torch_ssim(x, y, data_range=1.0, return_full_image=True, reduction="none")[1])


@pytest.mark.parametrize(("size", "channels"), [((40, 31), 1), ((24, 24), 3), ((14, 16, 13), 1)])
def test_ssim_equals_torchmetrics_inside(size, channels):
    """To rounding, in 2D and 3D, grey and colour."""
    x, y = originals_and_copies(size, channels=channels)
    found = ssim(x, y, ImageSpec(size, channels, **UNIT))
    torch.testing.assert_close(found, torch_full(x, y), rtol=1e-10, atol=1e-10)
    assert (found < 0.99).all()


@pytest.mark.parametrize("size", [(64, 64), (180, 177), (22, 23, 24)])
def test_ms_ssim_is_composed_of_torchmetrics_scales(size):
    """Contrast of every scale and luminance of the last, from torchmetrics, with our weights."""
    n = 3 if len(size) == 2 else 1
    x, y = originals_and_copies(size, n=n, noise=0.2)
    spec, want = ImageSpec(size, **UNIT), torch.ones(n, dtype=torch.float64)
    weights, a, b = scale_weights(size), x, y
    pool = torch.nn.functional.avg_pool2d if len(size) == 2 else torch.nn.functional.avg_pool3d
    for j, w in enumerate(weights):
        cs = torch_ssim(a, b, data_range=1.0, return_contrast_sensitivity=True, reduction="none")[1]
        want = want * (torch_full(a, b) if j + 1 == len(weights) else cs) ** w
        a, b = pool(a, 2), pool(b, 2)
    torch.testing.assert_close(ms_ssim(x, y, spec), want, rtol=1e-10, atol=1e-10)


def test_ms_ssim_is_close_to_torchmetrics_own():
    """Its coarsest scale counts reflected borders, ours does not: the same number to about a hundredth."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as torch_ms

    x, y = originals_and_copies((192, 192), n=4, noise=0.05)
    theirs = torch_ms(x, y, data_range=1.0, betas=WEIGHTS, reduction="none")
    assert float((ms_ssim(x, y, ImageSpec((192, 192), **UNIT)) - theirs).abs().max()) < 0.01


def test_ms_ssim_has_the_published_value():
    """torchmetrics' documented example (1.0 to 1.3: seed 42, 3x3x256x256, target = 3/4 preds): 0.9627.

    Noise has no structure at its borders, so that their treatment does not show in four digits.
    """
    x = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(42))
    found = ms_ssim(x, 0.75 * x, ImageSpec((256, 256), 3, **UNIT))
    assert float(found.mean()) == pytest.approx(0.9627, abs=1e-4)
    assert (
        float(ssim(x, 0.75 * x, ImageSpec((256, 256), 3, **UNIT)).mean()) < 0.95
    )  # another measure would show


def by_the_book(x, y):
    """MS-SSIM of two grey images (H, W) with l, c and s apart (eqs. 5.2 to 5.4), one window at a time, in numpy."""
    import numpy as np

    taps = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    scales = next(m for m in (5, 4, 3, 2, 1) if min(x.shape) // 2 ** (m - 1) >= 11)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights, product = weights / weights.sum(), 1.0
    for j, w in enumerate(weights):
        terms = []
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                a, b = (v[top : top + 11, left : left + 11] for v in (x, y))
                ma, mb = (window * a).sum(), (window * b).sum()
                sa, sb = (np.sqrt((window * (v - m) ** 2).sum()) for v, m in ((a, ma), (b, mb)))
                cov = (window * (a - ma) * (b - mb)).sum()
                luminance = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
                contrast = (2 * sa * sb + c2) / (sa**2 + sb**2 + c2)
                structure = (cov + c2 / 2) / (sa * sb + c2 / 2)
                terms.append((luminance if j == scales - 1 else 1.0) * contrast * structure)
        product *= max(np.mean(terms), 0.0) ** w
        h, k = x.shape[0] // 2, x.shape[1] // 2
        x, y = (v[: 2 * h, : 2 * k].reshape(h, 2, k, 2).mean((1, 3)) for v in (x, y))
    return product


@pytest.mark.parametrize("size", [(47, 44), (23, 30), (12, 15)])
def test_ms_ssim_equals_the_definition_written_out(size):
    """Loops over windows with luminance, contrast and structure apart: equal to 1e-10 at 3, 2 and 1 scales."""
    x, y = originals_and_copies(size, n=2, noise=0.2)
    found = ms_ssim(x, y, ImageSpec(size, **UNIT))
    want = [by_the_book(a.numpy(), b.numpy()) for a, b in zip(x[:, 0], y[:, 0])]
    assert found.tolist() == pytest.approx(want, rel=1e-10)
    assert 0 < min(want) and max(want) < 0.99


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.8), (0.0, 1.0), (0.5, 0.5)])
def test_constant_images_have_a_closed_form(a, b):
    """No variance: cs = 1, SSIM = l = (2ab + C1) / (a^2 + b^2 + C1), MS-SSIM = l^w_M, MSE = (a - b)^2."""
    spec = ImageSpec((48, 48), **UNIT)
    x, y = (torch.full((1, 1, 48, 48), v, dtype=torch.float64) for v in (a, b))
    c1 = K1**2
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    assert float(ssim(x, y, spec)) == pytest.approx(luminance, rel=1e-9)
    assert float(ms_ssim(x, y, spec)) == pytest.approx(luminance ** scale_weights((48, 48))[-1], rel=1e-9)
    assert float(mse(x, y, spec)) == pytest.approx((a - b) ** 2, abs=1e-15)


def test_equal_images_are_perfect_and_order_does_not_matter():
    """MSE 0, PSNR infinite, SSIM and MS-SSIM 1; all are symmetric."""
    spec = ImageSpec((64, 64), **UNIT)
    x, y = originals_and_copies((64, 64))
    assert mse(x, x, spec).tolist() == [0] * 3 and psnr(mse(x, x, spec)).tolist() == [math.inf] * 3
    for measure in (ssim, ms_ssim):
        torch.testing.assert_close(
            measure(x, x, spec), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12
        )
        torch.testing.assert_close(measure(x, y, spec), measure(y, x, spec), rtol=0, atol=1e-12)


def test_the_images_range_does_not_change_the_scores():
    """The same pictures in [-1, 1], [0, 1] or [0, 255] have the same numbers; MSE 0.01 is PSNR 20 dB."""
    x, y = originals_and_copies((48, 48))
    base = score_reconstructions(*(Images(v, ImageSpec((48, 48), **UNIT)) for v in (x, y)))
    for low, high in ((-1.0, 1.0), (0.0, 255.0)):
        spec = ImageSpec((48, 48), low=low, high=high)
        other = score_reconstructions(*(Images(v * (high - low) + low, spec) for v in (x, y)))
        for name in ("mse", "psnr", "ssim", "ms_ssim"):
            torch.testing.assert_close(getattr(other, name), getattr(base, name), rtol=1e-9, atol=1e-12)
    assert float(psnr(torch.tensor(0.01, dtype=torch.float64))) == pytest.approx(20)


def test_scores_fall_with_blur_and_with_noise():
    """A better reconstruction never scores worse; shuffled pixels, the negative control, lose everywhere."""
    x, _ = originals_and_copies((64, 64), n=4)
    x = (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    spec = ImageSpec((64, 64), **UNIT)
    order = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(2))
    shuffled = x.flatten(2)[..., order].view_as(x)
    blurred = [torch.nn.functional.avg_pool2d(x, k, 1, k // 2, count_include_pad=False) for k in (1, 3, 7)]
    scores = [score_reconstructions(Images(x, spec), Images(y, spec)) for y in (*blurred, shuffled)]
    for better, worse in pairwise(scores):
        assert (better.mse < worse.mse).all() and (better.psnr > worse.psnr).all()
        assert (better.ssim > worse.ssim).all() and (better.ms_ssim > worse.ms_ssim).all()


@pytest.mark.parametrize(
    ("side", "scales"),
    [(11, 1), (21, 1), (22, 2), (43, 2), (44, 3), (64, 3), (88, 4), (112, 4), (175, 4), (176, 5), (512, 5)],
)
def test_scale_rule(side, scales):
    """As many scales as leave 11 pixels at the coarsest, at most five; the weights keep their ratios."""
    weights = scale_weights((300, side))
    assert len(weights) == scales and sum(weights) == pytest.approx(1)
    assert weights[-1] / weights[0] == pytest.approx(WEIGHTS[scales - 1] / WEIGHTS[0])
    if side >= 176:
        assert weights == pytest.approx(WEIGHTS, rel=2e-4)  # the published ones sum to 1.0001... as printed


def test_the_result_states_its_constants_and_has_intervals():
    """Everything needed to repeat the numbers; means lie in their intervals, patients are resampled."""
    x, y = originals_and_copies((48, 48), n=12)
    spec = ImageSpec((48, 48), **UNIT)
    found = score_reconstructions(Images(x, spec), Images(y, spec))
    s = found.settings
    assert (s["window"], s["sigma"], s["k1"], s["k2"], s["scales"]) == (11, 1.5, 0.01, 0.03, 3)
    assert s["range"] == [0.0, 1.0] and s["weights"] == list(scale_weights((48, 48)))
    patients = tuple(str(i // 4) for i in range(12))
    for groups in (None, patients):
        estimates = found.estimates(torch.Generator().manual_seed(0), groups)
        assert set(estimates) == {"mse_1e-5", "psnr", "ssim", "ms_ssim"}
        assert all(e.low <= e.value <= e.high and e.se > 0 for e in estimates.values())
    assert estimates["mse_1e-5"].value == pytest.approx(float(mse(x, y, spec).mean()) * 1e5)
    assert found.mse.shape == (12,) and found.ms_ssim.dtype == torch.float64


def test_many_images_are_scored_as_few():
    """Working in chunks changes nothing."""
    x, y = originals_and_copies((16, 16), n=70)
    spec = ImageSpec((16, 16), **UNIT)
    found = score_reconstructions(Images(x, spec), Images(y, spec))
    torch.testing.assert_close(found.ssim, ssim(x, y, spec), rtol=1e-12, atol=0)
    assert len(found.mse) == 70


def test_bad_input_gets_one_sentence():
    """Other range, other shape, other number, too small, NaN."""
    x, y = originals_and_copies((32, 32))
    spec = ImageSpec((32, 32), **UNIT)
    real = Images(x, spec)
    with pytest.raises(RangeError, match=r"in \[0, 1\] against .* in \[-1, 1\]"):
        score_reconstructions(real, real.to_range(-1, 1))
    with pytest.raises(RangeError, match="Bring both to one size"):
        score_reconstructions(real, Images(y[..., :30], ImageSpec((32, 30), **UNIT)))
    with pytest.raises(RangeError, match="2 reconstructions for 3 originals"):
        score_reconstructions(real, Images(y[:2], spec))
    with pytest.raises(RangeError, match="2 reconstructions for 3 originals"):
        mse(x, y[:2], spec)
    with pytest.raises(RangeError, match="reconstructions: values in"):
        ssim(x, 2 * y + 1, spec)
    with pytest.raises(RangeError, match="reconstructions: 1 of 3 images hold NaN"):
        ms_ssim(x, torch.where(torch.arange(3).view(3, 1, 1, 1) == 1, torch.nan, y), spec)
    small = ImageSpec((32, 10), **UNIT)
    for measure in (ssim, ms_ssim):
        with pytest.raises(VerisimError, match=r"windows of 11 pixels; images of 32x10 are too small"):
            measure(x[..., :10], y[..., :10], small)
