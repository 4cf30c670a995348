"""A distilled student: it starts as its teacher, learns the teacher's two steps, and knows its own grid only."""

import shutil

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.hub.weights import ModelCard, load_model, save_model
from verisim.models import build_model
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

NET = {"channels": (8, 8), "blocks": 1, "attention": (False, False), "allow_small_features": True}
SPEC = ImageSpec((8, 8))
STUDENT = {"steps": 2, "phases": 2, "phase_steps": 3}


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def images(n=12, size=(8, 8)):
    return torch.rand(n, 1, *size, generator=seeded(7)) * 2 - 1


def teacher(folder, spec=SPEC, classes=0, **settings):
    """The folder of a diffusion model whose random network answers more than nothing."""
    torch.manual_seed(0)
    settings = {**NET, **settings}
    model = build_model("diffusion", settings, spec, classes)
    model.prepare(images(size=spec.size))
    for p in model.net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "weights.safetensors", model, ModelCard("diffusion", settings, spec, classes))
    return str(folder)


def made(path, spec=SPEC, classes=0, **settings):
    torch.manual_seed(1)
    return build_model("distilled", {**STUDENT, "teacher": path, **settings}, spec, classes)


KINDS = {
    "edm": {},
    "epsilon": {"parametrisation": "epsilon"},
    "v": {"parametrisation": "v"},
    "flow": {"parametrisation": "flow"},
    "haar": {"representation": "haar", "parametrisation": "x0"},
    "learned": {"parametrisation": "epsilon", "learned_variance": True},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_teacher_has_a_student(kind, tmp_path):
    """At the start the student answers as the teacher does; loss, gradient and samples are there; its file is complete."""
    path = teacher(tmp_path / "t", **KINDS[kind])
    model = made(path)
    own, _ = load_model(path)
    z = torch.randn(2, *own.representation.spec.shape, generator=seeded())
    sigma = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(
        model._x0(model.net, z, sigma, None), own.denoise(z, sigma), rtol=1e-4, atol=1e-5
    )
    model.prepare(images())
    loss, parts = model.training_loss(images(), None)
    loss.mean().backward()
    assert loss.shape == (12,) and bool((loss > 0).all()) and int(parts["steps"]) == 4
    assert all(p.grad is None for p in model.teacher.parameters())
    assert any(float(p.grad.abs().sum()) > 0 for p in model.net.parameters() if p.grad is not None)
    model.eval().use_channels_last()
    x = model.sample(2, generator=seeded())
    model.spec.check(x)
    save_model(tmp_path / "w", model, ModelCard("distilled", {**STUDENT, "teacher": path}, SPEC))
    shutil.rmtree(tmp_path / "t")
    again, card = load_model(tmp_path / "w")
    assert path not in card.to_json() and torch.equal(again.sample(2, generator=seeded()), x)


def test_its_own_steps_and_no_others(tmp_path):
    """Asked for its number of steps it makes them; any other number is an error with the reason."""
    model = made(teacher(tmp_path / "t")).eval()
    for n in (0, 4):
        model.configure_sampling(steps=n)
        seen = []
        model.sample(1, generator=seeded(), callback=seen.append)
        assert len(seen) == 4
    with pytest.raises(VerisimError, match=r"8 steps asked of a student distilled to 4.*knows no others"):
        model.configure_sampling(steps=8)


def test_phases_halve_the_grid_and_pass_the_weights_on(tmp_path):
    """Steps 0-2 learn 4 steps from 8, steps 3-5 learn 2 from 4; the second teacher is the first student."""
    model = made(teacher(tmp_path / "t"))
    first = {k: v.clone() for k, v in model.teacher.net.state_dict().items()}
    optimizer = model.optimizer()
    counts, rates = [], []
    for step in range(6):
        before = {k: v.clone() for k, v in model.net.state_dict().items()}
        model.begin_step()
        now = model.teacher.net.state_dict()
        wanted = first if step < 3 else (before if step == 3 else now)
        assert all(torch.equal(now[k], wanted[k]) for k in now)
        counts.append(int(model.now))
        rates.append(model.lr_scale(step, 6))
        optimizer.zero_grad()
        model.training_loss(images(), None)[0].mean().backward()
        optimizer.step()
        model.end_step()
    assert counts == [4, 4, 4, 2, 2, 2]
    assert rates == pytest.approx([1, 2 / 3, 1 / 3] * 2)
    assert any(not torch.equal(now[k], first[k]) for k in now)


def test_the_student_learns_its_teachers_two_steps(tmp_path):
    """After 40 steps of training it is much nearer to where the teacher's fine grid ends than the teacher's coarse one."""
    model = made(teacher(tmp_path / "t"), phases=1, phase_steps=40, lr=3e-3)
    own, _ = load_model(str(tmp_path / "t"))
    own.configure_sampling(sampler="euler", schedule="angle", steps=4, clip=False)
    fine = own.sample(32, generator=seeded())
    own.configure_sampling(steps=2)
    coarse = own.sample(32, generator=seeded())
    torch.testing.assert_close(model.eval().sample(32, generator=seeded()), coarse, rtol=1e-4, atol=1e-4)
    model.train()
    optimizer = model.optimizer()
    for step in range(40):
        model.begin_step()
        optimizer.param_groups[0]["lr"] = 3e-3 * model.lr_scale(step, 40)
        optimizer.zero_grad()
        model.training_loss(images(16), None)[0].mean().backward()
        optimizer.step()
        model.end_step()
    few = model.eval().sample(32, generator=seeded())
    assert float((few - fine).square().mean()) < 0.3 * float((coarse - fine).square().mean())


def run(folder, path, steps, resume=False):
    target = RunFolder(folder)
    if not resume:
        target.create({"recipe": "test"})
    settings = TrainSettings(
        max_steps=steps, batch_size=4, log_every=1, sample_minutes=0.0, ema=0.9, precision="float32"
    )
    plan = ModelPlan("distilled", {**STUDENT, "teacher": path})
    return train(target, plan, Images(images(), SPEC), settings, resume=resume, quiet=True).model


def test_resuming_across_a_phase_is_exact(tmp_path):
    """2 + 3 steps are 5 steps, bit for bit, teacher and phase included, with the teacher's folder gone."""
    path = teacher(tmp_path / "t")
    whole = run(tmp_path / "a", path, 5)
    run(tmp_path / "b", path, 2)
    shutil.rmtree(tmp_path / "t")
    parts = run(tmp_path / "b", path, 5, resume=True)
    a, b = whole.state_dict(), parts.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert int(whole.now) == 2 and int(load_model(tmp_path / "b")[0].now) == 2


def test_what_cannot_teach_is_refused(tmp_path):
    """No teacher, one of another kind or size, a described one, a grid that cannot be halved: one sentence each."""
    with pytest.raises(VerisimError, match=r"needs a trained teacher: --model\.teacher RUN"):
        made("")
    path = teacher(tmp_path / "t")
    with pytest.raises(CheckpointError, match=r"images of \(1, 8, 8\) with 0 classes.*\(1, 16, 16\)"):
        made(path, ImageSpec((16, 16)))
    with pytest.raises(CheckpointError, match=r"with 0 classes.*with 3"):
        made(path, classes=3)
    other = build_model("mlp_vae", {"hidden": 8, "layers": 1, "latent": 2}, SPEC)
    save_model(tmp_path / "v", other, ModelCard("mlp_vae", {"hidden": 8, "layers": 1, "latent": 2}, SPEC))
    with pytest.raises(CheckpointError, match="is a mlp_vae model; distillation takes model diffusion"):
        made(str(tmp_path / "v"))
    described = made(ModelCard("diffusion", NET, SPEC).to_json())
    with pytest.raises(VerisimError, match="teacher is described but its weights are missing"):
        described.prepare(images())
    with pytest.raises(CheckpointError, match="description of the teacher is damaged"):
        made("{")
    with pytest.raises(VerisimError, match="'karras' cannot be halved"):
        made(path, schedule="karras")
    with pytest.raises(VerisimError, match="phases = 0"):
        made(path, phases=0)
