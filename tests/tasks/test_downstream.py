"""Downstream users: known scores, closed forms, determinism, and findings that each of them must or must not see."""

import math
from dataclasses import replace

import pytest
import torch
from tests.fake_device import DEVICE, fake_device
from torch import nn

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.metrics.judges import JudgeSettings, logits
from verisim.metrics.utility import scores_of
from verisim.phantoms import PHANTOMS
from verisim.tasks.downstream import (
    DOWNSTREAM,
    DownstreamSettings,
    normal_class,
    one_class_gan,
    reconstruction,
)
from verisim.tasks.downstream.base import built
from verisim.tasks.downstream.confidence import PRICE, FlagScore, hint_loss
from verisim.tasks.downstream.experiment import Experiment
from verisim.tasks.downstream.one_class_gan import OneClassGAN, UNetAutoencoder, discriminator_loss
from verisim.tasks.downstream.reconstruction import (
    Autoencoder,
    ReconstructionError,
    ResidualClassifier,
    halves,
)
from verisim.tasks.downstream.uncertainty import NormalisedError, gaussian_nll, normalised_error

JUDGE = JudgeSettings(steps=60, batch=32, width=8)
LARGE = JudgeSettings(steps=30, batch=16, lr=1e-3, weight_decay=0.0, dropout=0.0)
SMALL = DownstreamSettings(JUDGE, LARGE, growth=4, steps=100, batch=32, width=8, latent=16)
NORMAL_ONLY = sorted(n for n, d in DOWNSTREAM.items() if d.learns_from == "normal images")
SPEC = ImageSpec((16, 16))


class Fixed(nn.Module):
    """A network whose output is known."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


def images(n=4, seed=0, spec=SPEC):
    x = torch.rand((n, *spec.shape), generator=torch.Generator().manual_seed(seed))
    return x * 1.6 - 0.8


def chests(n, seed, size=16, change=None):
    """Chests, every second one (class 1) with a bright patch at a random place in one lung."""
    x = PHANTOMS["chest"].make(n, seed=seed, size=size, findings=False).images
    labels = torch.arange(n) % 2
    return replace(x, pixels=(change or patched)(x.pixels, labels == 1, seed), labels=labels)


def patched(x, which, seed):
    rng, x, size = torch.Generator().manual_seed(seed), x.clone(), x.shape[-1]
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij"))
    for i in which.nonzero().flatten().tolist():
        side = 1 if float(torch.rand(1, generator=rng)) < 0.5 else -1
        at = torch.tensor([-0.3, 0.42 * side]) + 0.1 * torch.randn(2, generator=rng)
        blob = (-(grid - at[:, None, None]).square().sum(0) / 0.03).exp()
        x[i, 0] = x[i, 0] * (1 - blob) + blob
    return x


# --- what is exactly true --------------------------------------------------------------------------


def test_reconstruction_error_is_the_mean_square():
    """0 for a perfect autoencoder, 0.01 for one that is 0.1 off, the mean square of x for one that draws black-grey."""
    x = images()
    assert ReconstructionError(Fixed(lambda x: x))(x).tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(ReconstructionError(Fixed(lambda x: x + 0.1))(x), torch.full((4,), 0.01))
    torch.testing.assert_close(ReconstructionError(Fixed(torch.zeros_like))(x), x.square().flatten(1).mean(1))


def test_residual_classifier_sees_half_the_difference():
    """With an autoencoder that gives x - 2 d the classifier sees d."""
    x, d = images(), images(4, 1)
    net = ResidualClassifier(Fixed(lambda x: x - 2 * d), Fixed(lambda r: r.flatten(1)[:, :3]))
    torch.testing.assert_close(net(x), d.flatten(1)[:, :3])


def test_normalised_error_in_closed_form():
    """1 where every pixel is one standard deviation off, 4 for two, whatever the deviations are."""
    x, log_variance = images(), 6 * images(4, 2)
    for k in (0.0, 1.0, 2.0):
        off = k * (log_variance / 2).exp()
        torch.testing.assert_close(normalised_error(x, x - off, log_variance), torch.full((4,), k * k))


def test_gaussian_nll_is_least_at_the_true_variance():
    """(1 + log e^2) / 2 at s^2 = e^2, and more on both sides."""
    x = images()
    nll = [
        float(gaussian_nll(x, x - 0.3, torch.full_like(x, math.log(0.09 * f)))[0]) for f in (0.8, 1.0, 1.25)
    ]
    assert nll[1] == pytest.approx((1 + math.log(0.09)) / 2, abs=1e-6) and nll[1] < min(nll[0], nll[2])


def test_variance_is_between_a_grey_level_and_the_half_range():
    """Whatever the network says: s is at least one of 256 grey levels and at most 1."""
    for raw, s in ((-1e4, 2 / 255), (1e4, 1.0)):
        net = NormalisedError(Fixed(lambda x, raw=raw: torch.cat((x, torch.full_like(x, raw)), 1)))
        assert float((net.moments(images())[1] / 2).exp().mean()) == pytest.approx(s, rel=1e-5)


@pytest.mark.parametrize("wrong", [0.02, 0.2, 0.4, 0.7, 0.95])  # 1 - p of the true answer
def test_confidence_has_its_optimum_where_the_formula_says(wrong):
    """c = min(1, lambda / ((1 + lambda) (1 - p))): sure while the answer is right, unsure where it is not."""
    c = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    a = torch.full_like(c, math.log((1 - wrong) / wrong))  # abnormal with probability 1 - wrong
    outputs = torch.stack((a, torch.logit(c)), 1)
    for sign, truth in ((1.0, 1), (-1.0, 0)):
        o = outputs * torch.tensor([sign, 1.0], dtype=torch.float64)
        loss = torch.stack([hint_loss(row[None], torch.tensor([truth])) for row in o])
        best = min(1.0, PRICE / ((1 + PRICE) * wrong))
        assert float(c[loss.argmin()]) == pytest.approx(best, abs=2e-3)


def test_flagged_for_either_reason():
    """The score is the larger of both standardised parts: far-off anomaly or low confidence both stand out."""
    x = images(40)
    a, u = x[:, 0, 0, 0].clone(), x[:, 0, 0, 1].clone()
    net = FlagScore(Fixed(lambda x: x[:, 0, 0, :2]), x)
    both = torch.stack(((a - a.mean()) / a.std(), -(u - u.mean()) / u.std()))
    torch.testing.assert_close(net(x), both.amax(0).double())
    odd = torch.zeros(2, 1, 16, 16)
    odd[0, 0, 0, 0], odd[1, 0, 0, 1] = 9.0, -9.0  # surely abnormal; unsure
    assert float(net(odd).min()) > float(net(x).max())
    odd[1, 0, 0, 1] = 9.0  # control: very sure and not abnormal is no reason
    assert float(net(odd)[1]) < float(net(x).max())


def test_one_class_score_adds_three_known_parts():
    """0.01 + 1 + 0.04 before, and 3 on average after each part has its own unit."""
    x = images(8)
    net = OneClassGAN(
        Fixed(lambda x: (x + 0.1, torch.zeros(len(x), 5))),
        Fixed(lambda x: torch.ones(len(x), 5)),
        Fixed(lambda x: 2 * x.flatten(1)),
    )
    torch.testing.assert_close(net.compare(x)[1], torch.tensor([0.01, 1.0, 0.04]).expand(8, 3))
    torch.testing.assert_close(net(x), torch.full((8,), 1.05))
    net.calibrate(x)
    torch.testing.assert_close(net(x), torch.full((8,), 3.0))


def test_discriminator_loss_in_closed_form():
    """2 log 2 where it cannot tell; log(1 + e^-3) twice where it is sure and right by 3."""

    class Known(nn.Module):
        def forward(self, x):
            return x

        def critic(self, x):
            return x

    zero, three = torch.zeros(5, 1), torch.full((5, 1), 3.0)
    assert float(discriminator_loss(Known(), zero, zero)) == pytest.approx(2 * math.log(2), abs=1e-6)
    sure = 2 * math.log1p(math.exp(-3))
    assert float(discriminator_loss(Known(), three, -three)) == pytest.approx(sure, abs=1e-6)


def test_each_player_moves_its_own_networks(sets, monkeypatch):
    """With a discriminator that does not step, its weights stay what they were, and the others learn."""
    train, short = sets[16][0], replace(SMALL, steps=3)
    none = DOWNSTREAM["one_class_gan"].fit(train, 0, replace(short, lr=0.0), 0).state_dict()
    monkeypatch.setattr(one_class_gan, "PACE", 0.0)
    still = DOWNSTREAM["one_class_gan"].fit(train, 0, short, 0).state_dict()
    for key in none.keys() - {"usual"}:
        assert torch.equal(none[key], still[key]) == key.startswith("discriminator"), key


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (36, 28), (16, 16, 16)])
def test_u_net_without_its_skips_is_the_plain_autoencoder(size):
    """Same weights, skips at zero: the same image as the trunk's; with skips another one of the same shape."""
    spec, channels = ImageSpec(size), {16: (4, 8)}.get(min(size), (4, 8, 16))[: 3 if min(size) >= 32 else 2]
    net = built(lambda: UNetAutoencoder(spec, channels, 6), 0).eval()
    plain = Autoencoder(spec, 4, 6, 1).eval()
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("skips")})
    x = images(2, spec=spec)
    with torch.no_grad():
        before, code = net(x)
        for p in net.skips.parameters():
            p.zero_()
        torch.testing.assert_close(net(x)[0], plain(x))
        assert before.shape == x.shape and code.shape == (2, 6)
        assert torch.equal(before, plain(x)) == (len(net.skips) == 0)


# --- every downstream user -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets():
    """Training and test chests at 16 pixels, and at 32 for the network that needs them."""
    return {s: (chests(160, 1, s), chests(120, 2, s)) for s in (16, 32)}


@pytest.fixture(scope="module")
def results(sets):
    """Scores of every user on the bright patches, and one network of each."""
    found = {}
    for name in DOWNSTREAM:
        e = experiment(name)
        train, test = sets[32 if name == "densenet121" else 16]
        trained = e.train(train)
        found[name] = (e.test(trained, test), trained, test)
    return found


def experiment(name, settings=SMALL):
    return Experiment(name, 0, settings, seed=3, n_seeds=1, draws=200)


LEAST_AUC = {
    "classifier": 0.9, "densenet121": 0.75, "reconstruction": 0.8, "residual": 0.85, "uncertainty": 0.8,
    "confidence": 0.85, "one_class_gan": 0.8,
}  # fmt: skip


@pytest.mark.parametrize("name", DOWNSTREAM)
def test_bright_patches_are_found(name, results):
    """Each finds patches in the lungs of chests it never saw; outputs have the promised shape and are finite."""
    scores, trained, test = results[name]
    assert scores.auc.value > LEAST_AUC[name] and scores.auc.low > 0.6
    with torch.no_grad():
        out = trained.nets[0](test.pixels[:5])
    assert out.shape == ((5, 2) if DOWNSTREAM[name].output == "logits" else (5,))
    assert (scores.accuracy is None) == (DOWNSTREAM[name].output == "scores")


@pytest.mark.parametrize("name", DOWNSTREAM)
def test_no_finding_no_auc(name, results):
    """Control: the same networks cannot tell two halves of unchanged chests apart."""
    _, trained, test = results[name]
    bare = chests(160, 4, test.spec.size[0], lambda x, which, seed: x)
    e = experiment(name)
    auc = scores_of(trained.nets, bare, 0, 200, e.scored_against).auc
    assert 0.38 < auc.value < 0.62


@pytest.mark.parametrize("name", DOWNSTREAM)
def test_seed_decides_everything(name, sets):
    """Same seed, same network; another seed, another one; the global generator is left alone."""
    short = replace(
        SMALL, steps=2, judge=replace(JUDGE, steps=2), densenet=replace(LARGE, steps=1, validation=0.0)
    )
    train = sets[32 if name == "densenet121" else 16][0]
    torch.manual_seed(0)
    a = DOWNSTREAM[name].fit(train, 0, short, 5)
    first = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(1))
    torch.manual_seed(99)
    b, c = (DOWNSTREAM[name].fit(train, 0, short, s) for s in (5, 6))
    with torch.no_grad():
        ya, yb, yc = (net(train.pixels[:6]) for net in (a, b, c))
    assert torch.equal(ya, yb) and not torch.equal(ya, yc) and not a.training


@pytest.mark.parametrize("name", NORMAL_ONLY)
def test_abnormal_training_images_are_never_seen(name, sets):
    """Detectors of normal images alone come out the same whatever the abnormal training images are."""
    train, short = sets[16][0], replace(SMALL, steps=2)
    x = train.pixels.clone()
    x[train.labels == 1] = -1.0
    a, b = (DOWNSTREAM[name].fit(t, 0, short, 1) for t in (train, replace(train, pixels=x)))
    x[train.labels == 0] *= 0.5  # control: normal ones do matter
    c = DOWNSTREAM[name].fit(replace(train, pixels=x), 0, short, 1)
    with torch.no_grad():
        ya, yb, yc = (net(train.pixels[:6]) for net in (a, b, c))
    assert torch.equal(ya, yb) and not torch.equal(ya, yc)


# --- controls --------------------------------------------------------------------------------------


def test_shuffled_labels_are_at_chance(sets):
    """Redrawing must not betray which images had which label: half of the normal ones go to the autoencoder alone."""
    train, test = sets[16]
    e = experiment("residual", replace(SMALL, steps=60, judge=replace(JUDGE, steps=30)))
    found = e.control(train, test, None, 4)
    assert found["kind"] == "shuffled labels" and found["must_be"] == 0.5
    assert found["auc"]["low"] <= 0.5 <= found["auc"]["high"]


def test_shuffled_labels_would_notice(sets, monkeypatch):
    """Negative control: with an autoencoder that knows the classifier's normal images, shuffled labels beat chance."""

    def same(images, normal, seed):
        return (images.labels == normal).nonzero().flatten(), torch.arange(len(images))

    monkeypatch.setattr(reconstruction, "halves", same)
    e = experiment("residual", replace(SMALL, steps=120, judge=replace(JUDGE, steps=30)))
    assert e.control(*sets[16], None, 3)["auc"]["low"] > 0.5


def test_no_image_teaches_both_halves_of_the_residual_classifier(sets):
    """Half of the normal images to the autoencoder, everything else to the classifier, patients whole."""
    train = sets[16][0]
    patients = tuple(f"p{i // 4}" for i in range(len(train)))  # two normal images each
    mine, others = halves(replace(train, patients=patients), 0, 0)
    assert len(mine) == 40 and sorted([*mine.tolist(), *others.tolist()]) == list(range(160))
    assert train.labels[mine].sum() == 0 and train.labels[others].sum() == 80
    healthy = others[train.labels[others] == 0]
    assert not {patients[i] for i in mine} & {patients[i] for i in healthy}


@pytest.mark.parametrize("name", [*NORMAL_ONLY, "confidence"])
def test_real_images_beat_the_floor(name, sets, results):
    """Patches need knowledge of chests, or labels: better than after noise, or shuffled labels, on the same patients."""
    found = experiment(name).control(*sets[16], results[name][0], 2)
    assert found["kind"] == ("shuffled labels" if name == "confidence" else "noise images")
    assert found["must_be"] is None and found["real_minus_this"]["value"] > 0.1
    assert found["real_minus_this"]["low"] > 0 or name == "confidence"  # two shufflings: a wide interval


def test_a_finding_that_needs_no_knowledge_is_not_credited():
    """Negative control of the floor: noise over the whole image is found by a detector that saw noise only as well."""

    def bright(x, which, seed):
        x = x.clone() * 0.3
        x[which] += 0.6
        return x

    train, test = chests(100, 1, change=bright), chests(80, 2, change=bright)
    e = experiment("reconstruction", replace(SMALL, steps=40))
    found = e.control(train, test, e.run(train, test), 1)
    assert found["auc"]["value"] > 0.9 and found["real_minus_this"]["low"] <= 0


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "index"),
    [(("a", "normal"), 1), (("No_Finding", "x"), 0), (("x", "no-findings"), 1), (("Healthy", "ill"), 0)],
)
def test_a_class_named_like_normal_is_taken(names, index):
    """By the words, whatever stands between them."""
    assert normal_class(names) == index and normal_class(names, names[1 - index]) == 1 - index


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (("a", "b"), "", r"no class sounds like one\. Name it with --normal CLASS; classes: a, b"),
        (("normal", "no finding"), "", "several classes sound like one.*classes: normal, no finding"),
        (("none", "some"), "sme", r"No class 'sme'.*Did you mean 'some'\? Classes: none, some"),
    ],
)
def test_no_normal_class(names, wanted, message):
    """One sentence that lists the classes."""
    with pytest.raises(VerisimError, match=message):
        normal_class(names, wanted)


def few(labels):
    return Images(images(len(labels)), SPEC, torch.tensor(labels))


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("reconstruction", [0] * 31 + [1] * 40, "31 normal training images; a detector needs at least 32"),
        ("confidence", [0] * 40 + [1] * 7, "40 normal and 7 abnormal images.*at least 8 of each"),
        ("residual", [0] * 40, "only one class"),
        (
            "densenet121",
            [0, 1] * 20,
            "densenet121 needs images of at least 29 pixels per side; these have 16",
        ),
    ],
)
def test_images_that_cannot_teach(name, labels, message):
    """Too few normal images, one class, too small: said before anything is trained."""
    with pytest.raises(VerisimError, match=message):
        experiment(name).train(few(labels))


def test_images_that_cannot_test(sets):
    """A detector needs both kinds to be tested on."""
    e = experiment("reconstruction")
    with pytest.raises(VerisimError, match="test set: 40 normal and 0 abnormal images"):
        e.run(sets[16][0], few([0] * 40))


def test_scores_that_are_no_numbers():
    """A network that did not converge is an error, not an AUC."""
    with pytest.raises(VerisimError, match="NaN or Inf"):
        scores_of([Fixed(lambda x: x.flatten(1).sum(1) * math.nan)], few([0, 1] * 10), normal=0)


@pytest.mark.parametrize("name", DOWNSTREAM)
def test_trains_and_answers_on_another_device(name, monkeypatch):
    """The same numbers as on the CPU, from a device that refuses to mix with it; the networks come back."""
    size = 32 if name == "densenet121" else 16
    short = replace(SMALL, steps=3, judge=replace(JUDGE, steps=3), densenet=replace(LARGE, steps=1, batch=4))
    data = chests(80, 0, size)
    here = logits(DOWNSTREAM[name].fit(data, 0, short, 0), data.pixels)
    monkeypatch.setattr("verisim.devices.choose_device", lambda: DEVICE)
    with fake_device():
        net = DOWNSTREAM[name].fit(data, 0, short, 0)
        there = logits(net, data.pixels)
    assert all(t.device.type == "cpu" for t in [*net.parameters(), *net.buffers(), there])
    assert torch.equal(here, there)
