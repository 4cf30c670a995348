"""Feature networks: identity by hash, ranges, 2D and 3D, determinism, weights files."""

from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import CheckpointError, RangeError, VerisimError
from verisim.metrics.controls import blurred, noise_like, pixel_marginal
from verisim.metrics.domain import contrastive
from verisim.metrics.features import FEATURES, build, load_features, save_features
from verisim.metrics.frechet import frechet_distance


def images(n=48, size=(16, 16), channels=1, seed=0, labels=False):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, channels, *[4] * len(size), generator=g)
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    x = torch.nn.functional.interpolate(coarse, size, mode=mode, align_corners=False)
    y = (torch.arange(n) % 2) if labels else None
    return Images((0.4 * x).clamp(-1, 1), ImageSpec(size, channels), y)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize(("size", "channels"), [((16, 16), 1), ((33, 17), 3), ((8, 9, 10), 1)])
def test_every_network_in_2d_and_3d(name, size, channels):
    """Each registered network gives (N, D <= 512... per channel) finite float64 features of its own size."""
    x = images(36, size, channels)
    net = build(name, x, steps=3)
    f = net.embed(x)
    assert f.shape == (36, net.dim) and f.dtype == torch.float64 and torch.isfinite(f).all()
    assert net.dim <= 512 and len(net.sha256) == 64
    assert net.label == f"FD({name})"


def test_random_is_the_same_for_everybody():
    """Filters depend on the number of channels alone, never on the images: a golden hash."""
    a, b = build("random", images(seed=1)), build("random", images(40, (33, 17), seed=2))
    assert a.sha256 == b.sha256
    assert a.sha256 != build("random", images(channels=2)).sha256


@pytest.mark.parametrize("labels", [False, True])
def test_domain_is_deterministic_and_leaves_the_global_generator(labels):
    """Same images, seed and steps: same hash; another seed or step count: another. No global randomness."""
    x = images(labels=labels)
    state = torch.get_rng_state()
    first = build("domain", x, 0, 4)
    assert torch.equal(state, torch.get_rng_state())
    assert build("domain", x, 0, 4).sha256 == first.sha256
    assert build("domain", x, 1, 4).sha256 != first.sha256
    f = first.embed(x)
    assert f.mean(0).abs().max() < 1e-4  # z-scored on its own training images
    assert ("with labels" in first.preprocessing) == labels


def test_wrong_range_or_channels_is_refused():
    """[0, 1] into a [-1, 1] network is the fault that upset source 004: an error, never a rescale."""
    x = images()
    for name in FEATURES:
        net = build(name, x, steps=2)
        with pytest.raises(RangeError, match="Convert explicitly"):
            net.embed(x.to_range(0, 1))
        with pytest.raises(RangeError, match="channel"):
            net.embed(images(channels=2))
    with pytest.raises(VerisimError, match="at least 32"):
        build("domain", images(10))
    with pytest.raises(VerisimError, match="Did you mean 'random'"):
        build("randon", x)


@pytest.mark.parametrize("name", FEATURES)
def test_order_of_controls(name):
    """Fresh images of the same kind are nearest, noise is farthest, in every network."""
    train, test = images(150, seed=1), images(100, seed=2)
    g = torch.Generator().manual_seed(0)
    net = build(name, train, steps=40)
    real = net.embed(test)
    sets = {
        "real": train,
        "marginal": pixel_marginal(train, 150, g),
        "noise": noise_like(replace(train, pixels=train.pixels), 150, g),
    }
    fd = {k: frechet_distance(net.embed(v), real) for k, v in sets.items()}
    assert 3 * fd["real"] < fd["marginal"] and 3 * fd["real"] < fd["noise"]


def test_blur_control_is_between():
    """A blur of noisy images is visible to random features beside the same-kind floor."""
    g = torch.Generator().manual_seed(0)
    train, test = images(500, seed=1), images(500, seed=2)
    train, test = (
        replace(v, pixels=(v.pixels + 0.1 * torch.randn(v.pixels.shape, generator=g)).clamp(-1, 1))
        for v in (train, test)
    )
    net = build("random", train)
    same, soft = (frechet_distance(net.embed(v), net.embed(test)) for v in (train, blurred(train, 1.0)))
    assert soft > 2 * same


def test_contrastive_closed_form():
    """Identical pairs among orthogonal others: loss = log(1 + (2B - 2) exp(-1 / T))."""
    z = torch.eye(4).repeat(2, 1)
    expected = torch.log1p(6 * torch.exp(torch.tensor(-1 / 0.2)))
    assert float(contrastive(z)) == pytest.approx(float(expected), rel=1e-5)


def test_weights_file_round_trip_and_refusals(tmp_path):
    """A domain network survives its file; pickle, truncation and a changed weight are refused."""
    x = images()
    net, path = build("domain", x, steps=2), tmp_path / "domain.safetensors"
    save_features(net, path)
    again = load_features(path)
    assert again.sha256 == net.sha256 and torch.equal(again.embed(x), net.embed(x))
    raw = path.read_bytes()
    (tmp_path / "flipped").write_bytes(raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])
    (tmp_path / "short").write_bytes(raw[: len(raw) // 2])
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pt")
    for name, text in (
        ("flipped", "hash"),
        ("short", "no readable"),
        ("pickle.pt", "pickle are not accepted"),
    ):
        with pytest.raises(CheckpointError, match=text):
            load_features(tmp_path / name)
    with pytest.raises(CheckpointError, match="Only a domain network"):
        save_features(build("random", x), path)
