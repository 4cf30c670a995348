"""Which device models run on, and what is said of one that is not there."""

import os

import pytest
import torch

from verisim.cli.main import main
from verisim.devices import VARIABLE, choose_device, use_device
from verisim.errors import VerisimError
from verisim.training.settings import TrainSettings


def test_automatic_choice(monkeypatch):
    """A GPU if there is one; VERISIM_DEVICE before that; a name before both."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device().type == "cuda" and choose_device("cuda:1").index == 1
    assert [TrainSettings(max_steps=1, accelerator=a).device for a in ("auto", "cpu")] == ["cuda", "cpu"]
    monkeypatch.setenv(VARIABLE, "cpu")
    assert choose_device().type == "cpu" and choose_device("cuda").type == "cuda"
    use_device("auto")
    assert os.environ[VARIABLE] == "cpu"
    use_device("cuda:1")
    assert os.environ[VARIABLE] == "cuda:1"


@pytest.mark.parametrize(
    "name, said", [("gpu7", "no device 'gpu7'"), ("meta", "no device 'meta'"), ("cuda:9", "sees")]
)
def test_a_device_that_is_not_there(name, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(VerisimError, match=said):
        choose_device(name)


def test_the_commands_say_so(tmp_path, capsys):
    """In one sentence, before anything is read or written."""
    assert main(["sample", "X-D-fix.32px", "--device", "tpu", "--out", str(tmp_path / "made")]) == 2
    assert "no device 'tpu'" in capsys.readouterr().err and not (tmp_path / "made").exists()
