"""Implicit development, what is exactly true: counts, latents of whom, points, chunks, rendering, refusals."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import CheckpointError, LossError, RangeError, VerisimError
from verisim.hub.development import load_development, save_development
from verisim.models.implicit.development import Architecture, Development, identities
from verisim.models.implicit.fitting import LatentFit, Training, accumulate, fit, fit_latents, look_up
from verisim.models.implicit.points import draw_points, grid, mirrored
from verisim.models.implicit.progress import Progress
from verisim.phantoms import growing_brain
from verisim.recipes import catalogue
from verisim.seeding import generator

SMALL = Architecture(latent=4, hidden=8, layers=3)
FEW = Training(steps=4, scans=2, pixels=0.2, lr=1e-3)
SIZES = [(16, 20), (16, 16, 18)]


def scans(size=(16, 16), n=6, visits=2):
    made = growing_brain.make(n, 0, size, visits=visits)
    return made.images, made.factors["age"]


def trained(size=(16, 16), architecture=SMALL, settings=FEW):
    torch.manual_seed(0)
    images, ages = scans(size)
    model = Development.for_scans(images, architecture)
    fit(model, images, ages, settings)
    return model, images, ages


@pytest.mark.parametrize(("size", "parameters"), [((256, 256), 232_194), ((192, 256, 256), 232_450)])
def test_published_parameter_counts(size, parameters):
    """The default network has exactly as many as the source's table says, without the latents."""
    model = Development(ImageSpec(size), ["a"], Architecture())
    assert sum(p.numel() for p in model.net.parameters()) == parameters


def test_coordinates_are_the_sources():
    """(i - s / 2) / max: an axis of 256 spans [-0.5, 0.5), one of 192 [-0.375, 0.375); order as in the image."""
    x = grid(ImageSpec((192, 256)))
    assert x.shape == (192 * 256, 2)
    assert x.amin(0).tolist() == [-0.375, -0.5]
    assert x.amax(0).tolist() == pytest.approx([0.375 - 1 / 256, 0.5 - 1 / 256])
    assert grid(ImageSpec((6, 8, 8))).amin(0).tolist() == [-0.375, -0.5, -0.5]
    small = grid(ImageSpec((2, 4))).view(2, 4, 2)
    assert small[1, 3].tolist() == [0.0, 0.25] and small[0, 3].tolist() == [-0.25, 0.25]


def test_finer_grids_share_the_field_of_view():
    """The mean of each pair of voxels of a grid twice as fine is the coarse voxel; the same size is the same grid."""
    spec = ImageSpec((6, 8))
    fine = grid(spec, (12, 16)).view(6, 2, 8, 2, 2).mean((1, 3))
    assert torch.allclose(fine.flatten(0, 1), grid(spec), atol=1e-7)
    assert torch.equal(grid(spec, (6, 8)), grid(spec))


def test_mirrored_points():
    """Voxel (i, j) comes to lie on (i, W - 1 - j); twice is the identity."""
    index = mirrored((3, 4), -1)
    assert index.view(3, 4)[1].tolist() == [7, 6, 5, 4] and torch.equal(index[index], torch.arange(12))


def test_points_are_drawn_as_asked():
    """5 % of the voxels, 90 % of them inside, none twice; a side that is too small is made up for."""
    mask = torch.arange(2000) < 900
    for k in range(20):
        at = draw_points(mask, 0.05, 0.9, generator(k))
        assert len(at) == 100 and len(at.unique()) == 100 and int(mask[at].sum()) == 90
    for inside, share, expected in ((10, 0.05, 10), (1990, 0.05, 90), (1990, 0.5, 990), (0, 0.05, 0)):
        mask = torch.arange(2000) < inside
        at = draw_points(mask, share, 0.9, generator(0))
        assert len(at) == round(2000 * share) == len(at.unique()) and int(mask[at].sum()) == expected
    hits = torch.stack(
        [torch.bincount(draw_points(mask, 0.5, 0.9, generator(k)), minlength=2000) for k in range(99)]
    )
    assert int((hits.sum(0) == 0).sum()) == 0  # every voxel has its turn


def test_whose_latent():
    """Scans of a subject share one with SSL and have one each without (spec 002, T14)."""
    patients = ["a", "b", "a", "c", "a"]
    assert identities(patients, True) == ("a", "b", "a", "c", "a")
    assert identities(patients, False) == ("a/1", "b/1", "a/2", "c/1", "a/3")
    images = Images(torch.zeros(5, 1, 8, 8), ImageSpec((8, 8)), patients=tuple(patients))
    for ssl, rows in ((True, 3), (False, 5)):
        model = Development.for_scans(images, replace(SMALL, ssl=ssl))
        assert model.latents.shape == (2 * rows, 4)  # mirrored twins have their own
        assert len(set(model.rows(identities(patients, ssl)).tolist())) == rows


@pytest.mark.parametrize("ssl", [True, False])
@pytest.mark.parametrize("sgla", [0.0, 0.5])
def test_all_four_combinations(ssl, sgla):
    """Each trains the latents it should; the global latent stays 0; with the global one alone all stay 0 (control)."""
    model, _, _ = trained(
        architecture=replace(SMALL, ssl=ssl), settings=replace(FEW, steps=12, sgla=sgla, mirror=0.0)
    )
    moved = (model.latents != 0).any(1)
    assert not model.common.any() and model.common.grad is None
    assert moved[::2].all() and not moved[1::2].any()  # nobody was mirrored
    assert len(moved) == 2 * (3 if ssl else 6)
    nobody, _, _ = trained(architecture=replace(SMALL, ssl=ssl), settings=replace(FEW, sgla=1.0))
    assert not nobody.latents.any()


def test_mirrored_scans_are_somebody_else():
    """With mirroring always on only the twins' latents move."""
    model, _, _ = trained(settings=replace(FEW, steps=12, mirror=1.0, sgla=0.0))
    moved = (model.latents != 0).any(1)
    assert moved[1::2].all() and not moved[::2].any()


def test_unused_latents_stay_where_they_are():
    """A step moves the latents of its own scans only, whatever moved before (spec 002, K.5: a dense optimiser would not)."""
    torch.manual_seed(0)
    images, ages = scans()
    model = Development.for_scans(images, SMALL)
    s = replace(FEW, scans=1, mirror=0.0, sgla=0.0)
    before = []
    for steps in range(6, 9):  # the first k steps of a run are the same whatever its length
        torch.manual_seed(0)
        model = Development.for_scans(images, SMALL)
        fit(model, images, ages, replace(s, steps=steps))
        before.append(model.latents.detach().clone())
    for a, b in pairwise(before):
        assert int((a != b).any(1).sum()) == 1


def test_learned_global_latent():
    """It moves only if asked to."""
    model, _, _ = trained(
        architecture=replace(SMALL, learn_global=True), settings=replace(FEW, sgla=0.5, steps=8)
    )
    assert model.common.abs().min() > 0
    assert torch.equal(model.average_latent("zero")[0], model.common)


def test_latents_are_bounded():
    """A latent whose largest entry exceeds 1 is scaled down as a whole when it is used."""
    model, _, _ = trained()
    with torch.no_grad():
        model.latents[0] = torch.tensor([2.0, -4.0, 1.0, 0.0])
    assert model.latents_of(model.names[:1])[0].tolist() == [0.5, -1.0, 0.25, 0.0]
    used = look_up(model, torch.tensor([0, 0]), torch.tensor([True, False]))
    assert torch.allclose(used[0], torch.tensor([0.5, -1.0, 0.25, 0.0]), atol=1e-5) and not used[1].any()


def test_training_repeats():
    """Same seed, same weights; another seed, others."""
    a, b = trained()[0], trained()[0]
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    torch.manual_seed(0)
    images, ages = scans()
    c = Development.for_scans(images, SMALL)
    fit(c, images, ages, FEW, seed=1)
    assert not torch.equal(a.latents, c.latents)


@pytest.mark.parametrize("learn_global", [False, True])
def test_a_killed_run_ends_the_same(tmp_path, learn_global):
    """Seven steps at once are five, a restart from the file at step four, and three again: bit for bit."""
    images, ages = scans()
    s = replace(FEW, steps=7, sgla=0.3)

    def run(steps, seed, progress=None):
        torch.manual_seed(seed)  # first weights, which the file replaces
        model = Development.for_scans(images, replace(SMALL, learn_global=learn_global))
        return model, fit(model, images, ages, replace(s, steps=steps), progress=progress)

    whole, losses = run(7, 0)
    part = Progress(tmp_path / "state.safetensors", every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "save", lambda self, *a, f=Progress.save: None if a[-1] == 5 else f(self, *a))
        run(5, 0, part)  # the file says 4
    again, rest = run(7, 1, part)
    assert rest == losses[4:]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    with pytest.raises(CheckpointError, match=r"belongs to another run: lr is 0.001 there and 0.5 here"):
        fit(again, images, ages, replace(s, lr=0.5), progress=part)


def test_a_loss_that_is_not_finite_stops():
    """By name of the step, before any weight is touched."""
    model, images, ages = trained()
    with torch.no_grad():
        next(model.net.parameters()).fill_(math.inf)
    with pytest.raises(LossError, match=r"loss of step 0 is nan. Lower lr"):
        fit(model, images, ages, FEW)


def problem():
    torch.manual_seed(2)
    model, images, ages = trained()
    points = grid(model.spec)[None].expand(2, -1, -1)
    target = (images.pixels[:2].flatten(2).transpose(1, 2) + 1) / 2
    return model, points, ages[:2], torch.randn(2, 4) * 0.1, target


def gradients(chunk):
    model, points, ages, latents, target = problem()
    latents.requires_grad_()
    model.zero_grad()
    loss = accumulate(model, points, ages, latents, target, chunk)
    return loss, [p.grad.clone() for p in model.net.parameters()] + [latents.grad]


def test_chunks_add_up_to_the_whole():
    """Loss and gradients over pieces of 7, 100 points are those of all at once, and those of the formula."""
    whole, grads = gradients(10**6)
    model, points, ages, latents, target = problem()
    latents.requires_grad_()
    model.zero_grad()
    formula = (model(points, ages, latents) - target).square().flatten(1).mean(1).sum()
    formula.backward()
    assert whole == pytest.approx(formula.item(), rel=1e-6)
    assert torch.allclose(grads[-1], latents.grad, rtol=1e-4, atol=1e-7)
    for chunk in (7, 100):
        loss, parts = gradients(chunk)
        assert loss == pytest.approx(whole, rel=1e-5)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(parts, grads))


def saved_bytes(chunk):
    model, points, ages, latents, _ = problem()
    alive = [0]

    def pack(t):
        alive[0] += t.nbytes if t.numel() > 500 else 0  # activations, not weights
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(points[:1, :chunk], ages[:1], latents[:1]).sum()
    return alive[0]


def test_memory_is_proportional_to_the_points():
    """Twice the points per step, twice the saved activations."""
    assert saved_bytes(256) == pytest.approx(2 * saved_bytes(128), rel=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_rendering_is_the_forward_pass(size):
    """At the training grid: f(x, t, l) clipped to [0, 1] and mapped to [-1, 1], whole and in chunks, 2D and 3D."""
    model, images, ages = trained(size)
    latents = model.latents_of(images.patients)
    made = model.render(latents, ages)
    with torch.no_grad():
        y = model(grid(model.spec).expand(6, -1, -1), ages, latents)  # (6, V, 1)
    x = 2 * y.clamp(0, 1).transpose(1, 2).reshape(images.pixels.shape) - 1
    assert torch.allclose(made.images.pixels, x, atol=1e-6)
    assert made.images.spec == images.spec and not made.extrapolated.any()
    again = model.render(latents, ages, chunk=37)
    assert torch.allclose(again.images.pixels, made.images.pixels, atol=1e-5)  # rounding, ten times per layer
    model.double()
    points, age, latent = grid(model.spec).double(), ages[:1].double(), latents[:1].double()
    parts = [model(p[None], age, latent) for p in points.split(37)]
    assert torch.allclose(torch.cat(parts, 1), model(points[None], age, latent), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_any_grid(size):
    """Thrice as fine: every third voxel (the middle one) is the coarse image; spacing follows."""
    model, images, ages = trained(size)
    latent = model.average_latent("mean")
    fine = model.render(latent, ages[:1], tuple(3 * s for s in size))
    coarse = model.render(latent, ages[:1])
    middle = fine.images.pixels[(slice(None), slice(None), *[slice(1, None, 3)] * len(size))]
    assert torch.allclose(middle, coarse.images.pixels, atol=1e-5)
    assert fine.images.spec.spacing == pytest.approx([mm / 3 for mm in images.spec.spacing])


def test_ages_outside_of_training_are_marked():
    """The ends belong to the range; beyond them an image is extrapolated, and says so."""
    model, _, ages = trained()
    low, high = float(ages.min()), float(ages.max())
    made = model.render(model.average_latent(), torch.tensor([low - 0.1, low, high, high + 0.1]))
    assert made.extrapolated.tolist() == [True, False, False, True]


@pytest.mark.parametrize("size", SIZES)
def test_latent_fitting_leaves_the_network_alone(size):
    """Bit for bit, requires_grad included; a scan's latent does not depend on its company; seeds repeat it."""
    model, images, ages = trained(size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    few = LatentFit(steps=5, lr=1e-2, pixels=0.2)
    both = fit_latents(model, images.subset(torch.tensor([0, 1])), ages[:2], few)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.net.parameters()) and not model.common.requires_grad
    assert both.shape == (2, 4) and both.any(1).all() and not both.requires_grad
    alone = fit_latents(model, images.subset(torch.tensor([1])), ages[1:2], few)
    assert torch.allclose(alone[0], both[1], atol=1e-5)
    assert not torch.allclose(
        fit_latents(model, images.subset(torch.tensor([1])), ages[1:2], few, seed=1), alone
    )


def test_fitted_latents_are_bounded():
    """Large steps end on the bound, not beyond it."""
    model, images, ages = trained()
    z = fit_latents(model, images, ages, LatentFit(steps=5, lr=3.0, pixels=0.2))
    assert float(z.abs().max()) <= 1 + 1e-6


def test_masks_replace_the_guess():
    """With a mask of the left half and no outside points, the right half cannot matter."""
    model, images, ages = trained()
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :8] = True
    other = images.pixels[:1].clone()
    other[..., 8:] = 0.3
    few = LatentFit(steps=3, pixels=0.2, foreground=1.0)
    found = [
        fit_latents(model, Images(x, images.spec), ages[:1], few, masks=mask)
        for x in (images.pixels[:1], other)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("ssl", [True, False])
def test_file_round_trip(tmp_path, ssl):
    """A loaded model draws the same images of the same subjects and knows the same ages; other files are refused."""
    model, _, ages = trained((16, 16, 18), replace(SMALL, ssl=ssl))
    save_development(tmp_path / "m.safetensors", model)
    again = load_development(tmp_path / "m.safetensors")
    assert (
        again.names == model.names and again.spec == model.spec and again.architecture == model.architecture
    )
    made = [m.render(m.latents_of(m.names[:2]), ages[:2] + 9) for m in (model, again)]
    assert torch.equal(made[0].images.pixels, made[1].images.pixels)
    assert torch.equal(made[0].extrapolated, made[1].extrapolated)
    from verisim.training.checkpoint import save_state

    save_state(tmp_path / "other.safetensors", {})
    with pytest.raises(CheckpointError, match=r"not a model of development"):
        load_development(tmp_path / "other.safetensors")


def test_bad_scans_are_refused():
    """NaN voxels, other shapes and ranges, missing or impossible ages: what, where, and the remedy."""
    model, images, ages = trained()
    nan = images.pixels.clone()
    nan[2, 0, 3, 3] = math.nan
    with pytest.raises(RangeError, match=r"1 of 6 images hold NaN.*Remove or repair"):
        fit(model, Images(nan, images.spec, patients=images.patients), ages, FEW)
    wide, wide_ages = scans((16, 20))
    with pytest.raises(
        VerisimError, match=r"fit: scans of shape \(1, 16, 20\).*takes \(1, 16, 16\).*resample"
    ):
        fit(model, wide, wide_ages, FEW)
    with pytest.raises(VerisimError, match=r"fit_latents: scans of shape \(1, 16, 20\)"):
        fit_latents(model, wide, wide_ages)
    with pytest.raises(VerisimError, match=r"in \[0, 1\]; .*to_range\(-1, 1\)"):
        fit_latents(model, images.to_range(0, 1), ages)
    with pytest.raises(VerisimError, match=r"6 scans but 5 ages"):
        fit(model, images, ages[:5], FEW)
    for bad in (math.nan, 0.0, -30.0):
        with pytest.raises(VerisimError, match=r"age of scan 1 is .*weeks above 0"):
            fit_latents(model, images, torch.cat([ages[:1], torch.tensor([bad]), ages[2:]]))
    with pytest.raises(
        VerisimError, match=r"Masks of shape \(6, 16, 16\) for scans that need \(6, 1, 16, 16\)"
    ):
        fit(model, images, ages, FEW, masks=torch.ones(6, 16, 16))
    with pytest.raises(VerisimError, match=r"sgla=1.5.*probabilities"):
        fit(model, images, ages, replace(FEW, sgla=1.5))
    with pytest.raises(VerisimError, match=r"steps=4, mirror_axis=2; .*from -2 to 1"):
        fit(model, images, ages, replace(FEW, mirror_axis=2))
    with pytest.raises(VerisimError, match=r"fit: pixels=5, .*share above 0 and up to 1"):
        fit(model, images, ages, replace(FEW, pixels=5.0))
    with pytest.raises(VerisimError, match=r"fit_latents: pixels=0, "):
        fit_latents(model, images, ages, LatentFit(pixels=0.0))


def test_unknown_subjects_are_refused():
    """By name, with the nearest that there is and the way for new ones."""
    model, images, ages = trained()
    with pytest.raises(VerisimError, match=r"'subject-0099' is none of the 3.*Did you mean.*fit_latents"):
        model.latents_of(["subject-0099"])
    others = replace(images, patients=tuple(f"x{p}" for p in images.patients))
    with pytest.raises(VerisimError, match=r"'xsubject-0000' is none of the 3 identities"):
        fit(model, others, ages, FEW)
    with pytest.raises(VerisimError, match=r"do not say whom they show.*Images.patients"):
        Development.for_scans(replace(images, patients=None), SMALL)
    with pytest.raises(VerisimError, match=r"no average latent 'median'. Known: mean, zero"):
        model.average_latent("median")


def test_other_misuse_is_refused():
    """An untrained model, latents of another length, a grid of another rank, negative sizes."""
    images, ages = scans()
    fresh = Development.for_scans(images, SMALL)
    with pytest.raises(VerisimError, match=r"untrained"):
        fresh.render(fresh.average_latent(), ages)
    with pytest.raises(VerisimError, match=r"untrained"):
        fit_latents(fresh, images, ages)
    model, _, _ = trained()
    with pytest.raises(VerisimError, match=r"Latents of shape \(2, 4\) for 6 ages"):
        model.render(torch.zeros(2, 4), ages)
    with pytest.raises(VerisimError, match=r"trained in 2D on \(16, 16\)"):
        model.render(model.average_latent(), ages, (8, 8, 8))
    with pytest.raises(VerisimError, match=r"latent=-1"):
        Development.for_scans(images, Architecture(latent=-1))
    with pytest.raises(VerisimError, match=r"at least one subject"):
        Development(images.spec, [], SMALL)


def test_page_runs_as_it_stands():
    """The Python of docs/implicit.md, with its assertion."""
    text = (Path(__file__).parents[2] / "docs" / "implicit.md").read_text()
    code = "\n".join(part.split("```")[0] for part in text.split("```python\n")[1:])
    names: dict = {}
    exec(compile(code, "docs/implicit.md", "exec"), names)
    assert names["film"].images.pixels.shape == (9, 1, 64, 64) and names["film"].extrapolated[-1]
    assert names["average"].images.pixels.shape == (18, 1, 16, 16)


def test_rows_of_the_catalogue():
    """The systems are listed as partial, with this page; those that are models are trained by name, the blocks are not."""
    rows = catalogue()
    for name in ("B-K", "B-L", "B-L2", "B-O", "B-S3"):
        assert rows[name].page == "docs/implicit.md"
    for name in ("B-K", "B-L", "B-L2"):
        assert rows[name].settings("source")["model"]["name"] == "development"
    assert rows["B-L2"].settings("none")["model"]["ssl"] is False
    with pytest.raises(VerisimError, match=r"of kind 'library' and cannot be trained"):
        rows["B-S3"].settings("source")
