"""Drawing in shards: together they are what one command would have drawn, in one folder."""

import pytest

from verisim.cli.main import main
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, save_model
from verisim.models import build_model
from verisim.tasks.generation import generate, parse_shard

SPEC = ImageSpec((8, 8))


@pytest.fixture
def weights(tmp_path):
    settings = {"channels": (4, 4), "latent": 2}
    path = tmp_path / "weights.safetensors"
    save_model(
        path, build_model("conv_vae", settings, SPEC, 2), ModelCard("conv_vae", settings, SPEC, 2, ("a", "b"))
    )
    return str(path)


def test_shards_together_are_the_whole(weights, tmp_path, capsys):
    """Files and manifest are the same, byte for byte; only the overviews differ."""
    common = ["sample", weights, "-n", "130", "--seed", "4", "--prior", "normal"]
    assert main([*common, "--out", str(tmp_path / "whole")]) == 0
    for shard in ("3/3", "1/3", "2/3"):
        assert main([*common, "--out", str(tmp_path / "parts"), "--shard", shard]) == 0
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir() if "overview" not in p.name}
    parts = {p.name: p.read_bytes() for p in (tmp_path / "parts").iterdir() if "overview" not in p.name}
    parts.pop(".lock")
    assert len(whole) == 132 and parts == whole
    assert (tmp_path / "parts" / "overview-2-of-3.png").exists()
    assert main([*common, "--out", str(tmp_path / "few"), "--shard", "1/4"]) == 2
    assert "130 images come in 3 chunk(s) of 64, too few for 4 shards" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "1/2/3", "-1/2"])
def test_shards_that_are_none(text):
    with pytest.raises(VerisimError, match=r"write K/N with K from 1 to N"):
        parse_shard(text)


def test_each_shard_keeps_its_texts(monkeypatch):
    """Image k is asked for with text k, whichever shard draws it."""
    model = build_model("conv_vae", {"channels": (4, 4), "latent": 2}, SPEC)
    monkeypatch.setattr("verisim.tasks.generation._read_texts", lambda model, n, texts: None)
    texts = [f"text {k}" for k in range(130)]
    card = ModelCard("conv_vae", {}, SPEC)
    parts = [generate(model, card, 130, texts=texts, rank=r, world_size=3, progress=False) for r in range(3)]
    assert parts[1].images.texts == tuple(texts[64:128]) and parts[1].places == tuple(range(64, 128))
    assert sorted(k for p in parts for k in p.places) == list(range(130))
