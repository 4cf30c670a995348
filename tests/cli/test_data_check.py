"""verisim data check: the exit code, the text for people, the JSON for programs."""

import json

import numpy as np
import pytest
from PIL import Image

from verisim.cli.data import main


def _folder(tmp_path, n=30):
    for i in range(n):
        array = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / f"{i:02d}.png")
    return str(tmp_path)


def test_text_and_exit_codes(tmp_path, capsys):
    """1 with problems, each with its remedy; lists are cut at --rows and say how many more there are."""
    folder = _folder(tmp_path)
    for i in range(30):
        (tmp_path / f"empty_{i:02d}.jpg").write_bytes(b"")
    assert main(["check", folder]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "30 readable image(s)" in text and "Files that cannot be read (30)" in text
    assert (
        "empty_19.jpg" in text
        and "empty_20.jpg" not in text
        and "... and 10 more (--rows 30 shows all)" in text
    )
    main(["check", folder, "--rows", "30"])
    assert "empty_29.jpg" in capsys.readouterr().out


def test_json(tmp_path, capsys):
    """Everything as one JSON object, nothing else on standard output."""
    assert main(["check", _folder(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 30 and found["counts"]["format"] == {"PNG": 30} and found["exit_code"] == 1


def test_unusable(tmp_path, capsys):
    """2 for an empty folder, with one sentence on standard error."""
    assert main(["check", str(tmp_path)]) == 2
    assert "no images found" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none"), "--json"]) == 2
    assert "no such folder" in json.loads(capsys.readouterr().out)["error"]


def test_help_has_an_example(capsys):
    """--help shows how it is called and what the exit code means."""
    with pytest.raises(SystemExit) as stop:
        main(["check", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "verisim data check my_xrays/" in text and "exit code: 0" in text
