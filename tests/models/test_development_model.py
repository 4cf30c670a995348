"""Implicit development as a model of the catalogue: the same steps as the library's, resumed exactly, honest refusals."""

from dataclasses import replace

import pytest
import torch
from tests.fake_device import DEVICE, fake_device

from verisim.data.ages import with_ages
from verisim.data.folder import load_images
from verisim.data.writers import write_image
from verisim.errors import DataError, VerisimError
from verisim.hub.weights import load_model
from verisim.models.implicit.development import Architecture, Development, scan_identities
from verisim.models.implicit.fitting import LatentFit, Training, fit, fit_latents, unexplained
from verisim.models.implicit.model import ImplicitDevelopment
from verisim.phantoms import growing_brain
from verisim.seeding import generator
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

NET = {"latent": 4, "hidden": 8, "layers": 3}
STEPS = {"pixels": 0.2, "lr": 1e-3, "sgla": 0.3}
PLAN = ModelPlan("development", {**NET, **STEPS})


def scans(size=(16, 16), n=6):
    made = growing_brain.make(n, 0, size)
    return replace(made.images, labels=None, ages=made.factors["age"])


def trained(path, images, steps=8, resume=False, plan=PLAN):
    settings = TrainSettings(batch_size=2, max_steps=steps, ema=0.0, precision="float32", accelerator="cpu",
                             checkpoint_steps=3, sample_minutes=0)  # fmt: skip
    run = RunFolder(path)
    if not resume:
        run.create({"model": {}, "data": {}, "training": {}})
    return train(run, plan, images, settings, resume=resume, quiet=True).model


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("ssl", [True, False])
def test_a_run_is_the_librarys_training(tmp_path, ssl):
    """Eight steps of a run folder give the weights of eight steps of `fit`, bit for bit."""
    images = scans()
    model = trained(tmp_path, images, plan=ModelPlan("development", {**NET, **STEPS, "ssl": ssl}))
    torch.manual_seed(0)
    other = Development(images.spec, ["nobody"], Architecture(**NET, ssl=ssl))
    other.enrol(scan_identities(images, ssl))
    fit(other, images, images.ages, Training(steps=8, scans=2, **STEPS))
    assert same(model.net.state_dict(), other.state_dict()) and model.net.names == other.names
    assert other.latents.any()


def test_a_stopped_run_ends_the_same(tmp_path):
    """Four steps and four more are eight, with latents, both optimisers and the range of ages; 3D."""
    images = scans((16, 16, 16))
    whole = trained(tmp_path / "a", images)
    trained(tmp_path / "b", images, steps=4)
    again = trained(tmp_path / "b", images, resume=True)
    assert again.step == 8 and same(whole.net.state_dict(), again.net.state_dict())
    assert whole.usual == again.usual > 0


def test_weights_file_holds_all_it_takes(tmp_path):
    """Subjects, ages, and how well scans are explained come back; samples keep to an age that is asked for."""
    images = scans()
    model = trained(tmp_path, images).eval()
    again, _ = load_model(tmp_path)
    assert isinstance(again, ImplicitDevelopment)
    assert again.net.names == ("subject-0000", "subject-0001", "subject-0002")
    assert again.usual == pytest.approx(model.usual) and torch.equal(again.net.ages, model.net.ages)
    again.configure_sampling(age=30.0)
    drawn = again.sample(2, generator=generator(1))
    assert again.net.draw(torch.zeros(1, 4), torch.tensor([30.0])).pixels.shape == drawn[:1].shape
    again.net.latents.data.zero_()
    zero = again.sample(2, generator=generator(1))
    assert torch.allclose(zero, again.net.draw(torch.zeros(2, 4), torch.full((2,), 30.0)).pixels)


def test_what_it_cannot_learn_from():
    """No ages, no patients, ages that are none, classes."""
    images = scans()
    model = ImplicitDevelopment(images.spec, **NET)
    with pytest.raises(VerisimError, match=r"needs the age of each scan.*--data.age COLUMN"):
        model.meet(replace(images, ages=None))
    with pytest.raises(VerisimError, match="do not say whom they show"):
        model.meet(replace(images, patients=None))
    with pytest.raises(VerisimError, match="age of scan 1 is nan"):
        model.meet(replace(images, ages=torch.tensor([30, float("nan"), 30, 30, 30, 30])))
    with pytest.raises(VerisimError, match="ages, not classes"):
        ImplicitDevelopment(images.spec, 2, **NET)


@pytest.fixture
def folder(tmp_path):
    images = scans()
    lines = ["image,patient,split,weeks"]
    for k in range(6):
        write_image(tmp_path / f"{k}.png", images.pixels[k], images.spec, {})
        lines.append(
            f"{k}.png,{images.patients[k]},{'test' if k > 3 else 'train'},{float(images.ages[k]):.3f}"
        )
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_ages_from_a_manifest(folder):
    """Each image gets its own; another age is another fingerprint; what is no age is named."""
    dataset = load_images(folder, 16)
    aged = with_ages(dataset, folder, "weeks")
    want = dict(zip((f"{k}.png" for k in range(6)), scans().ages.tolist()))
    for images in aged.values():
        assert images.ages.tolist() == pytest.approx([want[n] for n in images.names], abs=1e-3)
    file = folder / "manifest.csv"
    text = file.read_text()
    file.write_text(text.replace(f"{want['2.png']:.3f}", "44"))
    assert with_ages(dataset, folder, "weeks").fingerprint != aged.fingerprint
    file.write_text(text.replace(f"{want['2.png']:.3f}", "old"))
    with pytest.raises(DataError, match=r"2.png, column 'weeks': 'old' is no age"):
        with_ages(dataset, folder, "weeks")
    with pytest.raises(DataError, match=r"no column 'week'.*Did you mean 'weeks'"):
        with_ages(dataset, folder, "week")


def test_on_a_device(tmp_path):
    """Scans of the CPU are fitted and shown at other ages by a network elsewhere."""
    images = scans()
    model = trained(tmp_path, images)
    with fake_device():
        net = model.to(DEVICE).sampling_development
        latents = fit_latents(net, images, images.ages, LatentFit(steps=2))
        assert latents.device == DEVICE
        assert torch.isfinite(unexplained(net, images, images.ages, latents)).all()
        assert torch.isfinite(net.render(latents, images.ages + 1).images.pixels).all()
