"""Imported networks: what a run of MONAI's weights makes is what MONAI's network makes, and bad files get a sentence."""

import json
from importlib.util import find_spec

import pytest
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from safetensors.torch import save_file

from verisim.cli.main import main
from verisim.data.spec import ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.hub.monai_weights import MonaiDiffusion
from verisim.hub.tensor_files import read_tensors
from verisim.hub.weights import load_model
from verisim.models import IMPORTED, build_model, model_class
from verisim.roles import Denoiser, LatentSpace, Sampler
from verisim.seeding import generator

UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": [8, 16],
        "attention_levels": [False, False], "norm_num_groups": 4, "num_head_channels": 8}  # fmt: skip
KL = {"spatial_dims": 2, "num_res_blocks": 1, "channels": [8, 8], "attention_levels": [False, False],
      "latent_channels": 2, "norm_num_groups": 4, "with_encoder_nonlocal_attn": False,
      "with_decoder_nonlocal_attn": False}  # fmt: skip
attention = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's attention blocks need einops")


def network(kind, settings):
    """A MONAI network whose last layer is not zero."""
    torch.manual_seed(0)
    net = kind(**settings).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net


def files(folder, kind, settings, suffix=".safetensors"):
    """The network, and the options that name its two files."""
    net, name = network(kind, settings), kind.__name__
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    weights, told = folder / f"{name}{suffix}", folder / f"{name}.json"
    save_file(state, weights) if suffix == ".safetensors" else torch.save({"state_dict": state}, weights)
    told.write_text(json.dumps({"_target_": name, **settings}))
    return net, [str(weights), "--settings", str(told), "--size", "16"]


@attention
def test_a_unet_becomes_a_run(tmp_path, capsys):
    """Its samples are those of the library's own adapter around MONAI's network; the card says what is known."""
    net, call = files(tmp_path, DiffusionModelUNet, {**UNET, "num_class_embeds": 3})
    run = tmp_path / "run"
    scheduler = ["--schedule", "scaled_linear_beta", "--beta_start", "0.0015", "--beta_end", "0.0195"]
    kind = ["--kind", "monai-unet", "--null_class", "2"]
    assert main(["import", *call, *kind, *scheduler, "--out", str(run)]) == 0
    assert "Next: verisim sample" in capsys.readouterr().out
    model, card = load_model(run)
    assert isinstance(model, Sampler) and isinstance(model, Denoiser)
    assert card.num_classes == 2 and card.class_names == ("0", "1") and card.spec == ImageSpec((16, 16))
    assert "training data and settings are unknown" in card.training["trained_as"]
    assert card.training["imported_from"] == "DiffusionModelUNet.safetensors" and card.recipe == ""
    own = MonaiDiffusion(
        net.state_dict(), {**UNET, "num_class_embeds": 3}, card.spec, schedule="scaled_linear_beta",
        beta_start=0.0015, beta_end=0.0195, null_class=2,
    )  # fmt: skip
    label = torch.tensor([1, 0])
    model.configure_sampling(sampler="dpmpp_2m", steps=4, guidance=2.0)
    want = own.sample(2, label, generator("t", 0), sampler="dpmpp_2m", steps=4, guidance=2.0)
    torch.testing.assert_close(
        model.sample(2, label, generator("t", 0)), want, atol=2e-4, rtol=1e-3
    )  # rounding
    model.configure_sampling(batch=1)
    assert model.sample(2, label, generator("t", 0)).shape == (2, 1, 16, 16)

    out = tmp_path / "samples"
    assert main(["sample", str(run), "-n", "3", "--steps", "2", "--class", "1", "--out", str(out)]) == 0
    assert len(list(out.rglob("*.png"))) == 4  # and the overview
    assert main(["info", str(run)]) == 0
    assert "imported_sha256" in capsys.readouterr().out
    assert main(["train", "--resume", str(run)]) == 2
    assert "was imported; how it was trained is unknown" in capsys.readouterr().err


@attention
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_autoencoder_and_a_unet_of_its_latent(tmp_path, suffix, capsys):
    """Encoded and decoded as by MONAI; explored; then the first stage of a U-Net whose file is complete without it."""
    net, call = files(tmp_path, AutoencoderKL, KL, suffix)
    stage = tmp_path / "kl"
    own = ["--kind", "monai-autoencoder", "--unit_range", "--scale_factor", "0.5"]
    assert main(["import", *call, *own, "--out", str(stage)]) == 0
    model, _ = load_model(stage)
    assert isinstance(model, LatentSpace)
    x = torch.rand(2, 1, 16, 16, generator=generator("t", 1)) * 2 - 1
    with torch.no_grad():
        mean, std = net.encode((x + 1) / 2)
        want = (2 * net.decode(mean) - 1).clamp(-1, 1)
    found, log_variance = model.posterior(x)
    torch.testing.assert_close(found, 0.5 * mean.flatten(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((0.5 * log_variance).exp(), 0.5 * std.flatten(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(model.encode(x)), want, atol=1e-5, rtol=1e-5)
    with pytest.raises(VerisimError, match="nothing to draw its latents from"):
        model.sample(1)
    explored = ["explore", "traverse", str(stage), "--data.count", "20", "--count", "2", "--frames", "3"]
    assert main([*explored, "--out", str(tmp_path / "e")]) == 0 and list((tmp_path / "e").glob("*.png"))

    latent = build_model(
        "diffusion",
        {"representation": "latent", "first_stage": str(stage), "channels": (8, 8), "blocks": 1,
         "attention": (False, False), "allow_small_features": True},
        ImageSpec((16, 16)),
    )  # fmt: skip
    latent.prepare(x)
    assert latent.representation.encode(x).shape == (2, 2, 8, 8)
    torch.testing.assert_close(
        latent.representation.decode(latent.representation.encode(x)), want, atol=1e-4, rtol=1e-4
    )

    unet, call = files(tmp_path, DiffusionModelUNet, {**UNET, "in_channels": 2, "out_channels": 2})
    run = tmp_path / "unet"
    kind = ["--kind", "monai-unet", "--first_stage", str(stage)]
    assert main(["import", *call, *kind, "--out", str(run)]) == 0
    (stage / "weights.safetensors").unlink()
    whole, card = load_model(run)
    assert str(stage) not in card.to_json() and card.spec == ImageSpec((16, 16))
    z = torch.randn(2, 2, 8, 8, generator=generator("t", 2))
    again = MonaiDiffusion(
        unet.state_dict(), {**UNET, "in_channels": 2, "out_channels": 2}, card.spec, stage=model.stage
    )
    torch.testing.assert_close(
        whole.denoise(z, torch.ones(2)), again.denoise(z, torch.ones(2)), atol=1e-5, rtol=1e-5
    )
    whole.configure_sampling(steps=2)
    torch.testing.assert_close(
        whole.sample(2, generator=generator("t", 3)), again.sample(2, generator=generator("t", 3), steps=2),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@attention
def test_what_cannot_be_imported(tmp_path, capsys):
    """Other kinds' options, wrong settings, a run that is there, expressions of bundles: a sentence, and no run."""
    _, call = files(tmp_path, DiffusionModelUNet, UNET)
    run = tmp_path / "run"

    def refused(match, *more, call=call):
        assert main(["import", *call, "--out", str(run), *more]) == 2
        error = capsys.readouterr().err
        assert match in error and "Traceback" not in error
        assert not run.exists()

    refused("--unit_range has no meaning for monai-unet", "--kind", "monai-unet", "--unit_range")
    refused("cosine schedule begins with a step", "--kind", "monai-unet", "--schedule", "cosine")
    refused("does not fit", "--kind", "monai-unet", call=changed(call, channels=[8, 24]))
    refused("no setting 'chanels'", "--kind", "monai-unet", call=changed(call, chanels=3))
    refused("is not evaluated", "--kind", "monai-unet", call=changed(call, channels="$[8] * 2"))
    refused("takes a monai_autoencoder", "--kind", "monai-unet", "--first_stage", diffusion_run(tmp_path))
    (tmp_path / "bad.json").write_text("{")
    refused(
        "is not JSON",
        "--kind",
        "monai-unet",
        call=[call[0], "--settings", str(tmp_path / "bad.json"), "--size", "16"],
    )


def changed(call, **settings):
    path = call[2].replace(".json", ".changed.json")
    with open(call[2]) as f, open(path, "w") as g:
        json.dump({**json.load(f), **settings}, g)
    return [call[0], "--settings", path, *call[3:]]


def diffusion_run(folder):
    from verisim.hub.weights import ModelCard, save_model

    settings = {"channels": (8, 8), "blocks": 1, "attention": (False, False)}
    model = build_model("diffusion", settings, ImageSpec((16, 16)))
    save_model(folder / "own.safetensors", model, ModelCard("diffusion", settings, ImageSpec((16, 16))))
    return str(folder / "own.safetensors")


class Evil:
    """Would write a file if its pickle were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_files_of_others(tmp_path):
    """State dicts at the top, nested, or of several GPUs are read alike; code is not run; anything else is named."""
    state = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    for name, content in {
        "top.pt": state,
        "nested.pth": {"epoch": 3, "state_dict": state},
        "gpus.pt": {f"module.{k}": v for k, v in state.items()},
    }.items():
        torch.save(content, tmp_path / name)
        found = read_tensors(tmp_path / name)
        assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)
    save_file(state, tmp_path / "w.safetensors")
    assert read_tensors(tmp_path / "w.safetensors").keys() == state.keys()

    def refused(match, name, content=None):
        if content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=match) as caught:
            read_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)

    refused("pickle whose code is not run", "evil.pt", {"a": Evil(str(tmp_path / "ran"))})
    assert not (tmp_path / "ran").exists()
    refused("pickle whose code is not run", "whole.pt", torch.nn.Linear(1, 1))
    refused("holds 'epoch' beside tensors", "mixed.pt", {"epoch": 3, "w": torch.ones(1)})
    refused("holds a list, not tensors by name", "list.pt", [torch.ones(1)])
    refused("holds no tensors", "empty.pt", {})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "top.pt").read_bytes()[:200])
    refused("truncated or no torch file", "cut.pt")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-3])
    refused("truncated or damaged", "cut.safetensors")
    refused("Cannot read .*No such file", "none.pt")
    refused("are read from .safetensors and .pt", "weights.npz")


def test_every_import_is_a_model():
    """The registry's entries load, and share no name with what is trained here."""
    from verisim.models import MODELS

    assert not set(IMPORTED) & set(MODELS)
    assert {model_class(n).__name__ for n in IMPORTED} == {"MonaiUNet", "MonaiKL"}
