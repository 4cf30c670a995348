"""MONAI networks behind our roles answer as MONAI's own, and its exact schedulers agree with ours."""

from importlib.util import find_spec

import pytest
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from monai.utils.module import OptionalImportError
from safetensors.torch import save_file

from verisim.data.spec import ImageSpec
from verisim.diffusion.schedules import vp_linear_table
from verisim.errors import CheckpointError, VerisimError
from verisim.hub.monai_weights import MonaiAutoencoder, MonaiDiffusion, training_table
from verisim.roles import Autoencoder, Denoiser, Sampler

UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": (8, 16),
        "attention_levels": (False, True), "norm_num_groups": 4, "num_head_channels": 8}  # fmt: skip
KL = {"spatial_dims": 2, "num_res_blocks": 1, "channels": (8, 8), "attention_levels": (False, False),
      "latent_channels": 2, "norm_num_groups": 4, "with_encoder_nonlocal_attn": False,
      "with_decoder_nonlocal_attn": False}  # fmt: skip
SPEC = ImageSpec((16, 16))
attention = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's attention blocks need einops")


def network(kind, settings):
    """A MONAI network whose last layer is not zero."""
    torch.manual_seed(0)
    net = kind(**settings).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net


def saved(path, net):
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    return path


def images(n=2, size=(16, 16), channels=1):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@attention
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear_beta", "scaled_linear_beta", "sigmoid_beta"])
def test_the_denoiser_is_what_monai_predicts(tmp_path, prediction, schedule):
    """At every training step: D(x, sigma) = pred_original_sample of MONAI's scheduler at x sqrt(alpha_bar)."""
    net = network(DiffusionModelUNet, UNET)
    model = MonaiDiffusion(saved(tmp_path / "w.safetensors", net), UNET, SPEC, prediction=prediction,
                           schedule=schedule)  # fmt: skip
    assert isinstance(model, Denoiser) and isinstance(model, Sampler)
    scheduler = DDPMScheduler(schedule=schedule, prediction_type=prediction, clip_sample=False,
                              beta_start=1e-4, beta_end=2e-2)  # fmt: skip
    x0, eps = images(), torch.randn(2, 1, 16, 16)
    for t in (20, 400, 800):
        x_t = scheduler.add_noise(x0, eps, torch.tensor([t, t]))
        with torch.no_grad():
            answer = net(x_t, torch.tensor([t, t]))
        _, want = scheduler.step(answer, t, x_t)
        scale = float(1 / scheduler.alphas_cumprod[t].double().sqrt())
        found = model.denoise(scale * x_t, model.table[[t, t]].float())
        assert float(answer.abs().max()) > 0.05
        torch.testing.assert_close(found, want, atol=1e-5 * scale, rtol=1e-4)


@attention
def test_the_network_answers_as_before(tmp_path):
    """In 3D, with classes, from file or state dict, with a bundle's _target_: the same to 1e-5."""
    settings = {**UNET, "spatial_dims": 3, "num_class_embeds": 3, "_target_": "DiffusionModelUNet"}
    net = network(DiffusionModelUNet, {k: v for k, v in settings.items() if k != "_target_"})
    spec, x, label = ImageSpec((8, 8, 8)), images(2, (8, 8, 8)), torch.tensor([0, 2])
    for weights in (saved(tmp_path / "w.safetensors", net), net.state_dict()):
        model = MonaiDiffusion(weights, settings, spec, null_class=2)
        with torch.no_grad():
            want = net(x, torch.tensor([7.0, 7.0]), class_labels=label)
        torch.testing.assert_close(
            model._network(x, torch.tensor([7.0, 7.0]), label), want, atol=1e-5, rtol=1e-5
        )
        none, second = (model.denoise(x, torch.ones(2), c) for c in (None, torch.tensor([2, 2])))
        assert torch.equal(none, second) and not torch.equal(none, model.denoise(x, torch.ones(2), label))
    plain = MonaiDiffusion(net.state_dict(), settings, spec)
    with pytest.raises(VerisimError, match=r"wants a class: give a condition, 0\.\.\.2"):
        plain.sample(1, steps=2)
    with pytest.raises(VerisimError, match="needs a class that stands for none"):
        plain.sample(2, label, steps=2, guidance=2.0)
    assert model.sample(2, label, torch.Generator().manual_seed(0), steps=2, guidance=2.0).shape == (
        2,
        1,
        8,
        8,
        8,
    )


@attention
def test_sampling_agrees_with_monai_where_it_is_exact():
    """DDIM over all T training steps, the one respacing at which MONAI's is right, from the same noise."""
    net = network(DiffusionModelUNet, UNET)
    model = MonaiDiffusion(net.state_dict(), UNET, SPEC, train_steps=12, beta_end=0.3)
    scheduler = DDIMScheduler(12, beta_start=1e-4, beta_end=0.3, clip_sample=False)
    scheduler.set_timesteps(12)
    seen = []
    found = model.sample(2, generator=torch.Generator().manual_seed(3), steps=12, callback=seen.append)
    sigma = float(model.table[-1])
    x = sigma * torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3)) / (1 + sigma**2) ** 0.5
    for t in scheduler.timesteps:
        with torch.no_grad():
            x, _ = scheduler.step(net(x, t[None].expand(2)), int(t), x)
    torch.testing.assert_close(seen[-1].x0, x, atol=1e-4, rtol=1e-4)  # before it is clipped
    assert torch.equal(found, seen[-1].x0.clamp(-1, 1)) and float(x.std()) > 0.05


@pytest.mark.parametrize("unit_range", [False, True])
def test_the_first_stage_answers_as_before(tmp_path, unit_range):
    """Latent mean times the scale factor, decoder back, with images in [-1, 1] or in [0, 1]."""
    net = network(AutoencoderKL, KL)
    stage = MonaiAutoencoder(saved(tmp_path / "kl.safetensors", net), KL, SPEC, scale_factor=0.7,
                             unit_range=unit_range)  # fmt: skip
    assert isinstance(stage, Autoencoder) and stage.spec.shape == (2, 8, 8)
    x = images()
    with torch.no_grad():
        mean, _ = net.encode((x + 1) / 2 if unit_range else x)
        want = net.decode(mean)
    torch.testing.assert_close(stage.encode(x), 0.7 * mean, atol=1e-5, rtol=1e-5)
    want = (2 * want - 1 if unit_range else want).clamp(-1, 1)
    torch.testing.assert_close(stage.decode(stage.encode(x)), want, atol=1e-5, rtol=1e-5)


@attention
def test_latent_diffusion_of_both(tmp_path):
    """The U-Net denoises the stage's latent, and samples are its decoded images."""
    stage = MonaiAutoencoder(network(AutoencoderKL, KL).state_dict(), KL, SPEC)
    settings = {**UNET, "in_channels": 2, "out_channels": 2}
    model = MonaiDiffusion(network(DiffusionModelUNet, settings).state_dict(), settings, SPEC, stage=stage)
    seen = []
    x = model.sample(2, generator=torch.Generator().manual_seed(0), steps=3, callback=seen.append)
    assert x.shape == (2, 1, 16, 16) and seen[-1].x0.shape == (2, 2, 8, 8)
    torch.testing.assert_close(x, stage.decode(seen[-1].x0))
    with pytest.raises(VerisimError, match=r"maps 2D images of 2 to 2 channel\(s\); here 2D ones of 1"):
        MonaiDiffusion(model.net.state_dict(), settings, SPEC)


def test_levels_of_training():
    """Linear betas are the table that this package has; cosine is refused with its reason."""
    torch.testing.assert_close(
        training_table("linear_beta", 1000, 1e-4, 0.02), vp_linear_table(), rtol=1e-5, atol=0
    )
    with pytest.raises(VerisimError, match="cosine schedule begins with a step without any noise"):
        training_table("cosine", 1000, 1e-4, 0.02)


@attention
def test_what_does_not_fit(tmp_path):
    """Pickles, damaged and missing files, other settings, cross-attention: a sentence each."""
    net = network(DiffusionModelUNet, UNET)
    path = saved(tmp_path / "w.safetensors", net)

    def refused(error, match, weights=path, kind=MonaiDiffusion, spec=SPEC, **changes):
        with pytest.raises(error, match=match):
            kind(weights, {**(KL if kind is MonaiAutoencoder else UNET), **changes}, spec)

    refused(CheckpointError, r"weights are read from \.safetensors and \.pt", tmp_path / "w.npz")
    refused(CheckpointError, "Cannot read .*No such file", tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(path.read_bytes()[:-100])
    refused(CheckpointError, "truncated or damaged", tmp_path / "bad.safetensors")
    refused(
        CheckpointError,
        r"does not fit a DiffusionModelUNet.*first '.* \(",
        channels=(8, 24),
        num_head_channels=8,
    )
    refused(VerisimError, r"no setting 'chanels'. Did you mean 'channels'", chanels=3)
    refused(VerisimError, "refuses these settings", norm_num_groups=3)
    refused(VerisimError, "cross-attention", with_conditioning=True, cross_attention_dim=4)
    refused(VerisimError, r"here 3D ones of 1", spec=ImageSpec((8, 8, 8)))
    kl = network(AutoencoderKL, KL).state_dict()
    refused(VerisimError, "every side must be a multiple of 2", kl, MonaiAutoencoder, ImageSpec((16, 15)))
    refused(VerisimError, "takes 2D images of 1", kl, MonaiAutoencoder, ImageSpec((16, 16), 3))


def test_without_einops_the_remedy_is_named(monkeypatch):
    """MONAI builds its attention with a package that it does not require."""

    def missing(*args, **kwargs):
        raise OptionalImportError("No module named 'einops'")

    monkeypatch.setattr("monai.networks.blocks.selfattention.Rearrange", missing)
    with pytest.raises(
        VerisimError, match="DiffusionModelUNet has attention blocks, which need the package einops"
    ):
        MonaiDiffusion({}, UNET, SPEC)
