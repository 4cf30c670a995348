"""Models that take something from the training images before the first step: a run that goes on takes it no second time."""

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.hub.weights import load_model
from verisim.models import build_model
from verisim.seeding import generator
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

PLANS = {
    "vamp": ModelPlan("conv_vae", {"width": 8, "latent": 4, "prior": "vamp", "pseudo_inputs": 3}),
    "flow": ModelPlan("flow", {"levels": 1, "steps": 2, "hidden": 8}),
    "hierarchical": ModelPlan("hierarchical_vae", {"width": 8, "max_width": 8, "maps": 2}),
}


def trained(folder, images, plan, steps, resume=False):
    run = RunFolder(folder)
    if not resume:
        run.create({"recipe": "toy"})
    settings = TrainSettings(
        max_steps=steps, batch_size=4, ema=0.9, sample_minutes=0.0, accelerator="cpu", precision="float32"
    )
    return train(run, plan, images, settings, resume=resume, quiet=True).model


@pytest.mark.parametrize("name", sorted(PLANS))
def test_going_on_is_bit_identical(name, tmp_path):
    """Two steps and two more end where four at once do; the averaged network is what the file holds."""
    x = torch.rand(12, 1, 8, 8, generator=generator(0)) - 0.7
    images, plan = Images(x, ImageSpec((8, 8)), patients=tuple(map(str, range(12)))), PLANS[name]
    whole = trained(tmp_path / "a", images, plan, 4)
    trained(tmp_path / "b", images, plan, 2)
    again = trained(tmp_path / "b", images, plan, 4, resume=True)
    a, b = whole.state_dict(), again.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    loaded, _ = load_model(tmp_path / "b")
    kept = again.sampling_net.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in loaded.net.state_dict().items())


@pytest.mark.parametrize("name", ["vamp", "flow"])
def test_the_start_is_of_the_images(name):
    """Other images, another start; the same images and seed, the same one; another seed, another one."""
    spec, x = ImageSpec((8, 8)), torch.rand(12, 1, 8, 8, generator=generator(0)) - 0.7
    starts = []
    for seed, images in ((0, x), (0, x), (1, x), (0, -x)):
        torch.manual_seed(0)
        model = build_model(PLANS[name].name, PLANS[name].settings, spec)
        model.seed = seed
        model.prepare(images)
        starts.append(torch.cat([p.detach().flatten() for p in model.net.parameters()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2]) and not torch.equal(starts[0], starts[3])
