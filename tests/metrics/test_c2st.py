"""The judge and its two uses: controls of the two-sample test, exact AUC, utility."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from verisim.data.spec import Images, ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.metrics.c2st import Split, auc, c2st, pairwise_wins, split_fakes
from verisim.metrics.controls import blurred, gaussian_blur, noise_like, pixel_marginal
from verisim.metrics.judges import JudgeSettings, SmallCNN, fit, logits, random_shift, split_groups
from verisim.metrics.utility import macro_scores, utility

QUICK = JudgeSettings(steps=60, batch=32, width=8)


def shapes(n, seed, classes=False, strength=1.0):
    """16 x 16 images of a bright blob with texture; class 1 has a second blob below."""
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.interpolate(torch.randn(n, 1, 4, 4, generator=g), (16, 16), mode="bilinear")
    x = 0.3 * x - 0.4 + 0.1 * torch.randn(n, 1, 16, 16, generator=g)
    x[:, :, 3:7, 4:9] += 0.7
    y = torch.arange(n) % 2
    if classes:
        x[y == 1, :, 10:14, 6:10] += 0.7 * strength
    patients = tuple(f"{seed}-{i // 2}" for i in range(n))
    return Images(x.clamp(-1, 1), ImageSpec((16, 16)), y if classes else None, patients)


REAL, TEST = shapes(160, 1), shapes(120, 2)


def pair(make):
    """Fakes made from other real images, so that only `make` differs."""
    return Split(REAL, make(shapes(160, 3)), TEST, make(shapes(120, 4)))


def test_auc_equals_sklearn_with_ties():
    """Exact AUC, ties counted half; the matrix mean is the AUC."""
    g = torch.Generator().manual_seed(0)
    p, n = torch.randint(0, 6, (30,), generator=g), torch.randint(-2, 4, (25,), generator=g)
    expected = roc_auc_score([1] * 30 + [0] * 25, torch.cat((p, n)).numpy())
    assert auc(p, n) == pytest.approx(expected, abs=1e-12)
    assert float(pairwise_wins(p, n).mean()) == pytest.approx(expected, abs=1e-12)


def test_control_real_against_real():
    """Two samples of one kind: the interval covers 0.5."""
    r = c2st(pair(lambda v: v), QUICK, n_seeds=2, draws=300)
    assert r.auc.low <= 0.5 <= r.auc.high and abs(r.auc.value - 0.5) < 0.12
    assert r.n_train == 160 and len(r.seeds) == 2


@pytest.mark.parametrize("kind", ["noise", "blurred", "marginal"])
def test_controls_are_seen(kind):
    """Noise, blur and pixel marginals are told from real images with AUC >= 0.97."""
    g = torch.Generator().manual_seed(5)
    make = {
        "noise": lambda v: noise_like(v, len(v), g),
        "blurred": lambda v: blurred(v, 1.0),
        "marginal": lambda v: pixel_marginal(v, len(v), g),
    }[kind]
    r = c2st(pair(make), QUICK, n_seeds=1, draws=200)
    assert r.auc.value >= 0.97 and r.accuracy.value > 0.85
    assert r.auc.low <= r.auc.value <= r.auc.high


def test_judge_is_deterministic_and_quiet():
    """Same seed: same weights; another seed: other weights; the global generator is not touched."""
    s = pair(lambda v: blurred(v))
    state = torch.get_rng_state()
    short = replace(QUICK, steps=5)
    a, b, c = (c2st(s, short, seed, 1, 50) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert a.as_dict() == b.as_dict()
    assert not torch.equal(a.judges[0].head.weight, c.judges[0].head.weight)


def test_too_few_and_mismatched_sets_are_refused():
    """What is missing is named with the number needed; a range mismatch is an error."""
    few = pair(lambda v: v.subset(torch.arange(10)))
    with pytest.raises(VerisimError, match="10 images in fake_train, at least 32"):
        c2st(few, QUICK)
    with pytest.raises(RangeError, match="one size and range"):
        c2st(pair(lambda v: v.to_range(0, 1)), QUICK)
    with pytest.raises(VerisimError, match="one per seed"):
        c2st([pair(lambda v: v)], QUICK, n_seeds=3)


def test_splits_keep_groups_apart():
    """No patient on both sides; fakes are cut without overlap, in proportion when scarce."""
    rest, held = split_groups(160, 0.25, torch.Generator().manual_seed(0), REAL.patients)
    names = REAL.patients
    assert not {names[i] for i in rest.tolist()} & {names[i] for i in held.tolist()}
    assert 30 <= len(held) <= 40 and len(rest) + len(held) == 160
    a, b = split_fakes(REAL, 100, 60)
    assert (len(a), len(b)) == (100, 60)
    a, b = split_fakes(REAL, 300, 100)
    assert (len(a), len(b)) == (120, 40)


def test_shift_is_a_shift_never_a_flip():
    """Every shifted row is the row moved with repeated edges, checked against all shifts; 3D too."""
    x = torch.arange(32.0).expand(20, 1, 16, 32)
    y = random_shift(x, 2, torch.Generator().manual_seed(0))
    allowed = [(torch.arange(32.0) + s).clamp(0, 31) for s in range(-2, 3)]
    assert all(any(torch.equal(row, a) for a in allowed) for row in y[:, 0, 0])
    assert random_shift(torch.zeros(2, 1, 8, 8, 8), 2, torch.Generator()).shape == (2, 1, 8, 8, 8)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 33, 17), (1, 128, 128), (2, 12, 10, 8), (1, 4, 4)])
def test_network_takes_any_size(shape):
    """2D and 3D, odd and tiny sizes: (B, K) finite logits."""
    net = SmallCNN(len(shape) - 1, shape[0], 3, 8, max(shape[1:])).eval()
    out = logits(net, torch.rand(2, *shape) * 2 - 1)
    assert out.shape == (2, 3) and torch.isfinite(out).all()
    assert net.features(torch.zeros(2, *shape)).shape == (2, net.dim)


def test_judge_needs_all_classes():
    """A missing class is an error with a remedy."""
    with pytest.raises(VerisimError, match="all 3 classes"):
        fit(REAL.pixels, torch.arange(160) % 2, 3, QUICK, 0)


def test_blur_exact():
    """A constant stays constant and a ramp stays a ramp inside; total light is kept, in 3D too."""
    c = torch.full((2, 1, 6, 8, 9), 0.3)
    assert torch.allclose(gaussian_blur(c, 1.0), c)
    ramp = torch.linspace(-1, 1, 33).expand(1, 1, 33, 33)
    assert torch.allclose(gaussian_blur(ramp, 1.0)[..., 4:-4], ramp[..., 4:-4], atol=1e-6)


def test_macro_scores_equal_sklearn():
    """AUC and balanced accuracy at weight one are sklearn's."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (80,), generator=g)
    z = torch.randn(80, 2, generator=g, dtype=torch.float64)
    a, b, da, db = macro_scores(z, y, torch.ones(1, 80, dtype=torch.float64))
    assert a == pytest.approx(roc_auc_score(y, (z[:, 1] - z[:, 0]).numpy()))
    assert b == pytest.approx(balanced_accuracy_score(y, z.argmax(1).numpy()))
    assert float(da) == pytest.approx(a) and float(db) == pytest.approx(b)


def test_utility_orders_good_and_useless_synthetic_sets():
    """Faithful synthetic images train nearly as well as real ones; shuffled labels (control) do not."""
    real, test = shapes(100, 11, True), shapes(80, 12, True)
    good = shapes(100, 13, True)
    bad = replace(good, labels=good.labels[torch.randperm(100, generator=torch.Generator().manual_seed(1))])
    short = replace(QUICK, steps=40)
    a, b = (utility(real, test, v, short, n_seeds=1, draws=200) for v in (good, bad))
    assert a["trtr"] == b["trtr"] and a["trtr"]["auc"]["value"] > 0.9
    assert a["tstr"]["auc"]["value"] > 0.9 > 0.75 > b["tstr"]["auc"]["value"]
    assert a["gain_auc"]["low"] <= a["gain_auc"]["value"] <= a["gain_auc"]["high"]
    assert a["classes"] == [0, 1] and a["n_synthetic"] == 100


def test_utility_refuses_one_class_and_no_labels():
    """One class or none leaves nothing to learn; the sentence says so."""
    real = shapes(40, 11, True)
    one = replace(real, labels=torch.zeros(40, dtype=torch.long))
    for bad, text in ((one, "only one class"), (replace(real, labels=None), "no labels")):
        with pytest.raises(VerisimError, match=text):
            utility(real, bad, real, QUICK)
