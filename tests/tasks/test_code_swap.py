"""Swapped codes change what they should and nothing else; the receptive field is the one autograd finds."""

import json

import pytest
import torch

from verisim.cli.main import main
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models import build_model
from verisim.models.autoencoders.vqvae import VQVAE
from verisim.reports.exploration import region_text
from verisim.roles import CodeSpace
from verisim.tasks.code_probe import code_features, code_use
from verisim.tasks.code_swap import growing_swap, middle_region, require_codes, swap_codes
from verisim.tasks.exploration import require_latents


def made(size=(32, 32), norm=False, kernel=4, channels=(8, 8)):
    torch.manual_seed(0)
    model = VQVAE(ImageSpec(size), codes=16, dim=4, channels=channels, norm=norm, kernel=kernel).eval()
    with torch.no_grad():  # codes far apart, so that another code is another picture
        model.net.autoencoder.quantiser.codebook.mul_(20)
    return model


def pair(size=(32, 32), seed=1):
    x = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x[0], x[1]


def all_codes_differ(model):
    """encode_codes of two made-up images whose code maps differ everywhere."""
    model.encode_codes = lambda x: torch.stack(
        [torch.full(model.grid, k % model.codes, dtype=torch.long) for k in range(len(x))]
    )
    return model


@pytest.mark.parametrize("size", [(32, 32), (18, 27), (12, 16, 20)])
def test_nothing_and_everything(size):
    """Swapping nothing gives the image's own reconstruction, swapping all the other's; bit by bit, 2D and 3D."""
    model = made(size, norm=True)
    a, b = pair(size)
    own, other = model.decode_codes(model.encode_codes(torch.stack([a, b])))
    nothing = swap_codes(model, a, b, [(1, 1)] * len(size))
    assert torch.equal(nothing.images[1], nothing.images[0]) and nothing.swapped == 0
    assert not nothing.field.any() and nothing.inside != nothing.inside and float(nothing.change.max()) == 0
    everything = swap_codes(model, a, b, [(0, n) for n in model.grid])
    assert torch.equal(everything.images[1], everything.images[2]) and everything.field.all()
    assert everything.inside == 1
    torch.testing.assert_close(everything.images[0], own, rtol=0, atol=1e-6)
    torch.testing.assert_close(everything.images[1], other, rtol=0, atol=1e-6)
    assert not torch.allclose(own, other, atol=0.01)  # so that the above are statements


@pytest.mark.parametrize(
    ("size", "kernel", "channels", "region"),
    [
        ((32, 32), 4, (8, 8), ((3, 5), (0, 2))),
        ((32, 32), 3, (8, 8), ((7, 8), (2, 6))),
        ((30, 21), 4, (8, 8, 8), ((1, 2), (2, 3))),
        ((64, 16), 3, (8,), ((10, 11), (0, 8))),
        ((16, 20, 12), 3, (8, 8), ((1, 2), (0, 5), (2, 3))),
    ],
)
def test_the_receptive_field_is_that_of_autograd(size, kernel, channels, region):
    """Pixels whose gradient with respect to the region's vectors is not zero, neither more nor fewer."""
    decoder = made(size, kernel=kernel, channels=channels).net.autoencoder.decoder
    grid = [m // 2 ** len(channels) for m in decoder.full]
    z = torch.randn(1, 4, *grid, generator=torch.Generator().manual_seed(2), requires_grad=True)
    want = torch.zeros(size, dtype=torch.bool)
    want[tuple(slice(a, b) for a, b in decoder.reach(region))] = True
    out = decoder(z)[0, 0]
    inside = (slice(None), slice(None), *(slice(a, b) for a, b in region))
    corners = [(a, b - 1) for a, b in decoder.reach(region)]
    for axis, (first, last) in enumerate(corners):  # one pixel at each end of each axis, one behind each
        for at, reached in ((first, True), (last, True), (first - 1, False), (last + 1, False)):
            if 0 <= at < size[axis]:
                index = [(f + e) // 2 for f, e in corners]
                index[axis] = at
                (grad,) = torch.autograd.grad(out[tuple(index)], z, retain_graph=True)
                assert bool((grad[inside] != 0).any()) == reached == bool(want[tuple(index)])


def test_locality_is_measured():
    """Without norm all of the change lies inside; group norm spreads some of it over the whole image."""
    a, b = pair()
    plain = swap_codes(all_codes_differ(made(norm=False)), a, b, [(3, 5), (3, 5)])
    assert plain.inside == 1 and plain.energy_inside == 1 and plain.swapped == 4
    assert float(plain.change[~plain.field].max()) == 0 < float(plain.change[plain.field].max())
    normed = swap_codes(all_codes_differ(made(norm=True)), a, b, [(3, 5), (3, 5)])
    assert float(normed.change[~normed.field].max()) > 0 and 0.5 < normed.energy_inside < 1


def test_growing_swap_starts_with_nothing_and_ends_with_all():
    model = made()
    a, b = pair()
    frames, regions = growing_swap(model, a, b, [(2, 4), (3, 6)], 5)
    own, other = model.decode_codes(model.encode_codes(torch.stack([a, b])))
    torch.testing.assert_close(frames[0], own)
    torch.testing.assert_close(frames[-1], other)
    torch.testing.assert_close(frames[1], swap_codes(model, a, b, [(2, 4), (3, 6)]).images[1])
    assert regions[0] == ((2, 2), (3, 3)) and regions[1] == ((2, 4), (3, 6))
    assert regions[-1] == ((0, 8), (0, 8)) and region_text(regions[0]) == "none"
    sizes = [(q - p) * (s - r) for (p, q), (r, s) in regions]
    assert sizes == sorted(sizes)
    with pytest.raises(VerisimError, match="frames=2: nothing, the region and everything"):
        growing_swap(model, a, b, [(2, 4), (3, 6)], 2)


@pytest.mark.parametrize(("grid", "want"), [((8, 8), ((2, 6), (2, 6))), ((1, 2), ((0, 1), (1, 2)))])
def test_middle_region(grid, want):
    assert middle_region(grid) == want


@pytest.mark.parametrize("region", [[(0, 9), (0, 8)], [(4, 3), (0, 8)], [(0, 8)]])
def test_regions_beyond_the_map(region):
    with pytest.raises(VerisimError, match=r"not part of this model's code map.*0:8,0:8 \(the whole map\)"):
        swap_codes(made(), *pair(), region)


def test_models_of_the_wrong_kind_are_told_what_to_use():
    """A VQ model has no latent to move, a VAE no codes to swap, a diffusion model neither."""
    vq, vae = made(), build_model("conv_vae", {"latent": 4, "width": 8}, ImageSpec((16, 16)))
    other = build_model(
        "diffusion", {"channels": (8, 16), "blocks": 1, "attention": (False, False)}, ImageSpec((16, 16))
    )
    assert isinstance(vq, CodeSpace) and require_codes(vq) is vq
    with pytest.raises(
        VerisimError, match=r"vqvae model has discrete codes and no continuous.*explore swap RUN"
    ):
        require_latents(vq)
    with pytest.raises(
        VerisimError, match=r"vae model has a continuous latent and no codes.*explore traverse"
    ):
        require_codes(vae)
    with pytest.raises(VerisimError, match=r"diffusion model has no codes to swap. Train a VQ-VAE"):
        require_codes(other)


def test_swap_and_grades_from_the_command_line(tmp_path, capsys):
    """Two steps of a VQ-VAE on knee phantoms: figure, offline page, numbers; traversal names the swap."""
    run, out = tmp_path / "run", tmp_path / "out"
    data = ["--data.count=100", "--data.size=16", "--training.max_steps=2", "--training.max_minutes=0"]
    assert main(["train", "K-S7", "--out", str(run), *data]) == 0
    assert main(["explore", "swap", str(run), "--out", str(out), "--region", "1:3,0:2", "--frames", "4"]) == 0
    page = (out / "explorer.html").read_text()
    assert page.count('type="range"') == 2 and "http" not in page.replace("http-equiv", "")
    assert (out / "swap.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "swap.json").read_text())
    assert found["grid"] == [4, 4] and found["region"] == [[1, 3], [0, 2]] and found["codes_changed"] <= 4
    assert main(["explore", "swap", str(run), "--region", "1-3"]) == 2
    assert "give first:end for each axis" in capsys.readouterr().err
    assert main(["explore", "traverse", str(run)]) == 2
    assert "explore swap RUN" in capsys.readouterr().err
    assert main(["explore", "grades", str(run), "--out", str(out), "--data.label", "label"]) == 0
    assert "reconstruction of another class" in capsys.readouterr().out
    assert json.loads((out / "grades.json").read_text())["all"]["n"] == 20
    assert main(["explore", "probe", str(run), "--out", str(out)]) == 0
    assert "joint" in capsys.readouterr().out and (out / "usage.png").exists()
    told = json.loads((out / "probes.json").read_text())
    assert told["codes"] == 512 and 1 <= told["perplexity"] <= 512 and "mig" not in told
    assert main(["explore", "grades", str(run), "--out", str(out)]) == 2
    assert "name a column with --data.label" in capsys.readouterr().err


def test_code_use_and_features():
    """Counts, perplexities and pooled vectors of code maps that are known."""
    model = made((32, 32), channels=(8, 8))  # 8x8 positions, 16 codes
    maps = torch.zeros(4, 8, 8, dtype=torch.long)
    maps[:, 0, 0] = torch.arange(4)  # one position takes four codes equally often, all others one
    model.encode_codes = lambda x: maps
    use = code_use(model, torch.zeros(4, 1, 32, 32))
    assert use.counts.tolist() == [253, 1, 1, 1] + [0] * 12
    assert float(use.by_position[0, 0]) == pytest.approx(4) and float(use.by_position[1:].max()) == 1
    assert 1 < use.perplexity < 1.2 and use.used == pytest.approx(4 / 16)
    found = code_features(model, torch.zeros(4, 1, 32, 32)).view(
        4, 4, 4, 4
    )  # image, D, 4 x 4 blocks of 2 x 2
    book = model.net.autoencoder.quantiser.codebook
    torch.testing.assert_close(found[2, :, 0, 0], (3 * book[0] + book[2]) / 4)
    torch.testing.assert_close(found[2, :, 3, 3], book[0])
