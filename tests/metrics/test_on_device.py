"""Judges and feature networks compute on the chosen device and answer on the CPU, with the same numbers."""

import pytest
import torch
from tests.fake_device import DEVICE, fake_device

from verisim.data.spec import Images, ImageSpec
from verisim.metrics.domain import train_domain
from verisim.metrics.features import build
from verisim.metrics.judges import JudgeSettings, fit, logits

SHORT = JudgeSettings(steps=12, batch=8, width=4)


def images(n: int = 40, size: tuple[int, ...] = (16, 16)) -> Images:
    """Noise, brighter in every second image."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    x = 0.5 * torch.rand(n, 1, *size, generator=g) - 0.5 + 0.4 * labels.view(-1, *[1] * (len(size) + 1))
    return Images(x, ImageSpec(size), labels)


@pytest.fixture
def device(monkeypatch):
    """A device that refuses tensors of the CPU is the chosen one."""
    monkeypatch.setattr("verisim.devices.choose_device", lambda: DEVICE)
    with fake_device():
        yield


def on_cpu(net: torch.nn.Module) -> bool:
    return all(t.device.type == "cpu" for t in [*net.parameters(), *net.buffers()])


def answers(data: Images) -> dict[str, torch.Tensor]:
    judge = fit(data.pixels, data.labels, 2, SHORT, 0)
    assert on_cpu(judge)
    found = {"judge": logits(judge, data.pixels)}
    for name, net in {
        "domain": train_domain(data, steps=4, width=4),
        "random": build("random", data),
        "pixels": build("pixels", data),
    }.items():
        found[name] = net.embed(data)
        assert on_cpu(net.module)
    return found


@pytest.fixture(params=[(16, 16), (8, 8, 8)], ids=["2D", "3D"])
def on_the_cpu(request):
    """Images, and what is answered of them without another device."""
    data = images(size=request.param)
    return data, answers(data)


def test_same_numbers_on_another_device(on_the_cpu, device):
    """Bit for bit, since the device that is not there computes as the CPU does."""
    data, expected = on_the_cpu
    found = answers(data)
    for name, value in expected.items():
        assert found[name].device.type == "cpu"
        assert torch.equal(found[name], value), name


def test_a_network_that_stays_behind_is_noticed(device):
    """Control: the device refuses images of the CPU."""
    net = torch.nn.Conv2d(1, 1, 3).to(DEVICE)
    with pytest.raises(RuntimeError, match="same device"):
        net(images().pixels)
