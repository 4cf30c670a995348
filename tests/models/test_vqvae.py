"""VQ-VAE: golden sizes, codes and embeddings, the two stages and what each may touch, bounds, bad input."""

import math
import re
import runpy
from pathlib import Path

import pytest
import torch

from verisim.cli.train import build_parser
from verisim.data.spec import Images, ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.hub.weights import load_model
from verisim.models import build_model
from verisim.models.autoencoders.vqvae import VQVAE
from verisim.roles import Autoencoder, Likelihood, Sampler
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

TINY = {"codes": 12, "dim": 4, "channels": (8, 16), "lr": 3e-3}
PRIOR = {"prior": "transformer", "prior_layers": 1, "prior_channels": 16, "first_stage_steps": 4}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(size=(16, 16), classes=0, **settings):
    torch.manual_seed(0)
    return VQVAE(ImageSpec(size), classes, **{**TINY, **settings})


def blobs(n, size=16, seed=0):
    """Bright discs at random places on a dark ground, in [-1, 1], and the half that each is in."""
    centre = torch.rand(n, 2, generator=seeded(seed)) * 0.6 + 0.2
    t = (torch.arange(size) + 0.5) / size
    d = (t[:, None] - centre[:, 0, None, None]) ** 2 + (t - centre[:, 1, None, None]) ** 2
    return (torch.exp(-d / 0.02) * 1.8 - 0.9)[:, None], (centre[:, 1] > 0.5).long()


def images(n=40, classes=False):
    x, label = blobs(n)
    return Images(x, ImageSpec((16, 16)), label if classes else None)


def trained(run, settings, data=None, steps=8, resume=False, **training):
    """A run of the real training loop."""
    folder = RunFolder(run)
    if not resume:
        folder.create({"recipe": "test"})
    base = {"batch_size": 8, "log_every": 1, "sample_minutes": 0.0, "ema": 0.9, "precision": "float32"}
    data = data or images()
    names = () if data.labels is None else ("left", "right")
    return train(
        folder,
        ModelPlan("vqvae", {**TINY, **settings}),
        data,
        TrainSettings(max_steps=steps, **{**base, **training}),
        class_names=names,
        resume=resume,
        quiet=True,
    ).model


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# --- the source's sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "grid", "bits", "millions"),
    [((8, 16, 32, 64, 128, 256), (4, 4), 144, 3.27), ((64, 128, 256), (32, 32), 9216, 3.13)],
)
def test_sizes_are_those_of_the_source(channels, grid, bits, millions):
    """K-S6 and K-S7 at 256 pixels: code grid, bits per image, and the numbers of the spec (codebook included)."""
    model = VQVAE(ImageSpec((256, 256)), channels=channels, norm=False)
    assert model.grid == grid and model.net.positions * math.log2(model.codes) == bits
    numbers = sum(p.numel() for p in model.parameters()) + model.net.autoencoder.quantiser.codebook.numel()
    assert numbers / 1e6 == pytest.approx(millions, abs=0.005)


# --- autoencoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (33, 18), (12, 9, 17)])
def test_codes_and_embeddings_agree(size):
    """decode(encode) = decode_codes(encode_codes), whatever the size, in 2D and 3D; roles are played."""
    model = made(size).eval()
    x = torch.rand(3, 1, *size, generator=seeded()) * 2 - 1
    codes, z = model.encode_codes(x), model.encode(x)
    assert codes.shape == (3, *model.grid) and codes.dtype == torch.int64 and z.shape == (3, 4, *model.grid)
    assert torch.equal(z, model.net.autoencoder.quantiser.embed(codes))
    assert torch.equal(model.decode(z), model.decode_codes(codes))
    model.spec.check(model.decode(z))
    assert torch.equal(model.net.autoencoder.quantiser.assign(z), codes)
    assert all(isinstance(model, role) for role in (Sampler, Autoencoder, Likelihood))


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_gradients_go_where_they_should(codebook):
    """Encoder and decoder learn in the first stage; the codebook by gradient only if so asked; the prior not."""
    model = made(codebook=codebook, **PRIOR)
    model.training_loss(blobs(4)[0], None)[0].mean().backward()
    a = model.net.autoencoder
    for part in (a.encoder, a.decoder):
        assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in part.parameters())
    assert [n for n, p in model.named_parameters() if "codebook" in n] == (
        ["net.autoencoder.quantiser.codebook"] if codebook == "loss" else []
    )
    assert codebook == "ema" or float(a.quantiser.codebook.grad.abs().sum()) > 0
    assert all(p.grad is None for p in model.net.prior.parameters())


def test_it_learns_to_reconstruct():
    """After 120 steps held-out error is a sixth of the mean image's, with much of the codebook in use; codes of
    other images, the negative control, reconstruct worse than the mean image."""
    torch.manual_seed(0)
    model = VQVAE(ImageSpec((16, 16)), **{**TINY, "codes": 64})
    (x, _), (test, _) = blobs(300), blobs(60, seed=1)
    optimizer = model.optimizer()
    for k in range(120):
        torch.manual_seed(k)
        model.step = k
        loss, parts = model.training_loss(x[torch.randint(300, (32,))], None)
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    codes = model.encode_codes(test)
    error = float((model.decode_codes(codes) - test).square().mean())
    wrong = float((model.decode_codes(codes.roll(1, 0)) - test).square().mean())
    mean = float((x.mean(0) - test).square().mean())
    assert error < mean / 6 and wrong > mean
    assert float(parts["perplexity"]) > 16 and float(parts["used"]) > 0.5


def test_collapse_is_warned_of_in_training():
    """All codes but one out of reach, and no restarts: said once, with the perplexity, by the training loss."""
    model = made(codes=64, restart_below=0.0)
    q = model.net.autoencoder.quantiser
    q.started.fill_(True)
    q.codebook[1:] += 100
    q.total.copy_(q.codebook)
    x = blobs(8)[0]
    with pytest.warns(UserWarning, match=r"collapsed: its perplexity is 1\.0 where 64 codes") as caught:
        for _ in range(200):
            model.autoencoder_loss(x)
            model.step += 1
    assert model.warned and len([w for w in caught if "collapsed" in str(w.message)]) == 1


# --- two stages in one run ------------------------------------------------------------------------


def test_each_stage_touches_its_own_weights_only(tmp_path):
    """The prior is untouched before its stage begins, the autoencoder bit for bit after; its average is used."""
    model = made(**PRIOR)
    fresh = {k: v.clone() for k, v in model.net.prior.state_dict().items()}
    with pytest.warns(
        UserWarning, match=r"never trained: the run ended at step 4, its stage begins at step 4"
    ):
        first = trained(tmp_path / "a", PRIOR, steps=4)
    assert int(first.sampling_net.prior_steps) == 0
    whole = trained(tmp_path / "b", PRIOR, steps=9)
    assert int(whole.sampling_net.prior_steps) == int(whole.net.prior_steps) == 5
    want = first.sampling_net.autoencoder.state_dict()
    variance = "observation.variance"  # calibrated at the end of the run
    for net in (whole.net, whole.sampling_net):
        have = net.autoencoder.state_dict()
        assert same(
            {k: v for k, v in have.items() if k != variance}, {k: v for k, v in want.items() if k != variance}
        )
    assert not same(whole.net.prior.state_dict(), fresh)
    assert not same(first.net.autoencoder.state_dict(), want)  # so "the average" is a statement


@pytest.mark.parametrize("at", [2, 4, 6])
def test_resume_is_bit_identical_in_both_stages(tmp_path, monkeypatch, at):
    """Killed before, at and after the change of stage: the resumed run ends with the very same weights."""
    whole = trained(tmp_path / "a", PRIOR, checkpoint_steps=2)
    loss = VQVAE.training_loss

    def dies(self, x, label):
        if self.step == at:
            raise RuntimeError("killed")
        return loss(self, x, label)

    monkeypatch.setattr(VQVAE, "training_loss", dies)
    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path / "b", PRIOR, checkpoint_steps=2)
    monkeypatch.setattr(VQVAE, "training_loss", loss)
    again = trained(tmp_path / "b", PRIOR, checkpoint_steps=2, resume=True)
    assert same(whole.state_dict(), again.state_dict())


def test_a_first_stage_from_a_file(tmp_path):
    """A second run takes the autoencoder of a first; its weights file is then complete without the first."""
    first = trained(tmp_path / "one", {}, steps=4)
    settings = {**PRIOR, "first_stage": str(tmp_path / "one"), "prior": "gated_pixelcnn", "prior_layers": 2}
    data = images(classes=True)
    second = trained(tmp_path / "two", settings, data, steps=5)
    x = data.pixels[:4]
    assert torch.equal(second.encode_codes(x), first.encode_codes(x))
    assert torch.equal(second.decode(second.encode(x)), first.decode(first.encode(x)))
    assert int(second.net.prior_steps) == 5
    (tmp_path / "one" / "weights.safetensors").unlink()
    alone, card = load_model(tmp_path / "two")
    assert card.settings["first_stage"].endswith("one")
    label = torch.tensor([0, 1, 1])
    assert torch.equal(alone.sample(3, label, seeded(1)), second.eval().sample(3, label, seeded(1)))


def test_a_first_stage_that_does_not_fit_is_refused(tmp_path):
    """Other sizes of the codebook, other images, another kind of model: which, and what to give instead."""
    trained(tmp_path / "one", {}, steps=1)
    settings = {**PRIOR, "first_stage": str(tmp_path / "one")}
    with pytest.raises(CheckpointError, match=r"other settings .*Give the same as there: codes=12, dim=4"):
        trained(tmp_path / "two", {**settings, "dim": 8}, steps=1)
    small = Images(blobs(20, 8)[0], ImageSpec((8, 8)))
    with pytest.raises(CheckpointError, match=r"for images of \(1, 16, 16\); the first stage must be"):
        trained(tmp_path / "three", settings, small, steps=1)
    with pytest.raises(CheckpointError, match="does not exist"):
        trained(tmp_path / "four", {**settings, "first_stage": str(tmp_path / "none")}, steps=1)


def test_constant_images_do_no_harm():
    """Images of one grey value: finite loss and gradients, a codebook that stays finite, one code map for all."""
    model, x = made(codes=64), torch.full((8, 1, 16, 16), -1.0)
    for _ in range(3):
        loss, parts = model.training_loss(x, None)
        loss.mean().backward()
        assert torch.isfinite(loss).all() and 1 <= float(parts["perplexity"]) <= 64
    assert all(torch.isfinite(p.grad).all() for p in model.net.parameters() if p.grad is not None)
    codes = model.eval().encode_codes(x)
    assert (codes == codes[0]).all() and torch.isfinite(model.decode_codes(codes)).all()


# --- sampling and likelihood ----------------------------------------------------------------------


def test_without_a_prior_codes_are_uniform():
    """Independent and even over the codebook (chi-square within 5 standard deviations), as the source drew."""
    model = made().eval()
    codes = model.sample_codes(400, generator=seeded())
    n = torch.bincount(codes.flatten(), minlength=12).double()
    expected = codes.numel() / 12
    assert abs(float(((n - expected) ** 2 / expected).sum()) - 11) < 5 * math.sqrt(2 * 11)
    assert torch.equal(model.decode_codes(codes), model.sample(400, generator=seeded()))


def test_the_prior_can_be_turned_off():
    """prior=uniform is the negative control on the very same autoencoder; options reach the prior."""
    model = made(**PRIOR).eval()
    for p in model.net.prior.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=seeded(2))
    plain = made().eval()
    model.configure_sampling(prior="uniform")
    assert torch.equal(model.sample_codes(5, generator=seeded(3)), plain.sample_codes(5, generator=seeded(3)))
    assert torch.equal(model.code_bits(blobs(2)[0]), plain.code_bits(blobs(2)[0]))
    model.configure_sampling(prior="learned", top_k=1)
    greedy = model.sample_codes(6, generator=seeded(3))
    assert (greedy == greedy[0]).all()
    model.configure_sampling(top_k=0, cached=False)
    naive = model.sample_codes(6, generator=seeded(3))
    model.configure_sampling(cached=True)
    assert torch.equal(naive, model.sample_codes(6, generator=seeded(3))) and (naive != naive[0]).any()


def test_bits_of_the_codes():
    """Uniform: positions log2 K. Learned: the sum of the prior's own bits, per class."""
    x, label = blobs(5)
    assert made().eval().code_bits(x).tolist() == pytest.approx([16 * math.log2(12)] * 5)
    model = made(classes=2, **PRIOR).eval()
    for p in model.net.prior.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=seeded(2))
    codes = model.encode_codes(x)
    want = model.net.prior.nll_bits(codes, label).flatten(1).sum(1)
    torch.testing.assert_close(model.code_bits(x, label), want.double(), rtol=1e-5, atol=1e-4)
    assert (model.code_bits(x, label) != model.code_bits(x)).any()


def test_bits_per_dim_bound_the_exact_likelihood():
    """8x8 images with 2x2 codes out of 4: log p(x) = log sum over all 256 code maps; the bound lies above."""
    torch.manual_seed(0)
    settings = {"codes": 4, "dim": 2, "channels": (8, 8), "prior": "transformer", "first_stage_steps": 1}
    model = build_model(
        "vqvae", {**settings, "prior_channels": 8, "prior_heads": 2}, ImageSpec((8, 8))
    ).eval()
    for p in model.net.prior.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=seeded(2))
    x = blobs(6, 8)[0]
    every = torch.cartesian_prod(*[torch.arange(4)] * 4).view(256, 2, 2)
    a = model.net.autoencoder
    with torch.no_grad():
        log_pk = -model.net.prior.nll_bits(every).double().flatten(1).sum(1) * math.log(2)  # (256,)
        out = a.decoder(a.quantiser.embed(every))
        log_px = torch.stack([a.observation.log_prob(out, v.expand_as(out)) for v in x])  # (6, 256)
    exact = -torch.logsumexp(log_pk + log_px, 1) / (64 * math.log(2))
    bound = model.bits_per_dim(x)
    assert model.likelihood_is_bound and (bound >= exact - 1e-9).all()
    chosen = (model.encode_codes(x).flatten(1) * torch.tensor([64, 16, 4, 1])).sum(1)
    terms = (log_pk + log_px)[torch.arange(6), chosen]
    torch.testing.assert_close(bound, -terms / (64 * math.log(2)), rtol=1e-6, atol=1e-6)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (4, 16), "channels": (8, 8, 8)}, "4x16 pixels cannot be halved 3 times.*images of 8x16"),
        ({"classes": 2}, "without a prior draws its codes uniformly and cannot be asked for a class"),
        ({"first_stage_steps": 5}, "say when a prior is trained, but there is none"),
        ({"prior": "transformer"}, "needs an autoencoder first: give --model.first_stage_steps N"),
        ({"size": (16, 16, 16), **PRIOR, "prior": "gated_pixelcnn"}, "2D code maps; these have 3 axes"),
        ({"codes": 1}, "codes >= 2"),
    ],
)
def test_bad_settings_get_one_sentence(settings, message):
    """What, where, which is allowed."""
    with pytest.raises(VerisimError, match=message):
        made(**settings)


def test_bad_codes_and_latents_get_one_sentence():
    """Wrong shapes, codes beyond the codebook, floats, options that do not exist."""
    model = made().eval()
    with pytest.raises(
        VerisimError, match=r"Latents of shape \(2, 5, 4, 4\); this model takes \(B, 4, 4, 4\)"
    ):
        model.decode(torch.zeros(2, 5, 4, 4))
    with pytest.raises(VerisimError, match=r"Codes of shape \(2, 4, 5\).*integers \(B, 4, 4\)"):
        model.decode_codes(torch.zeros(2, 4, 5, dtype=torch.long))
    with pytest.raises(VerisimError, match=r"type torch.float32; this model takes integers"):
        model.decode_codes(torch.zeros(2, 4, 4))
    with pytest.raises(VerisimError, match=r"Codes from 0 to 12; this model's codebook has 0\.\.\.11"):
        model.decode_codes(torch.full((1, 4, 4), 12).triu())
    with pytest.raises(VerisimError, match=r"no learned prior\. Train one with --model.prior"):
        model.configure_sampling(prior="learned")
    model = made().eval()
    with pytest.raises(VerisimError, match="temperature -1 is not possible"):
        model.configure_sampling(temperature=-1.0)
    with pytest.raises(VerisimError, match="it must be auto, uniform or learned"):
        made().configure_sampling(prior="even")


def test_the_page_runs(tmp_path):
    """The Python of docs/vq_vae.md as it stands, and every recipe and option of its commands exists."""
    page = (Path(__file__).parents[2] / "docs" / "vq_vae.md").read_text()
    script = tmp_path / "page.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)))
    runpy.run_path(str(script))
    commands = re.findall(r"^verisim train (\S+)((?: [^\s#]\S*)*)", page, flags=re.MULTILINE)
    assert len(commands) == 4
    for recipe, words in commands:
        variant = re.search(r"--variant (\S+)", words)
        build_parser(recipe, variant.group(1) if variant else "small").parse_args([recipe, *words.split()])
