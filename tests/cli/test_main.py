"""The command line as people meet it: help, typing errors, exit codes."""

import subprocess
import sys

import pytest

from verisim.cli.main import VERBS, main


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_examples(verb, capsys):
    """--help of every verb exits with 0 and shows an example."""
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"verisim {verb}" in out
    assert "lambda" not in out and "<function" not in out  # Python's words instead of the user's


def test_overview_lists_all_verbs(capsys):
    """Without arguments the verbs are explained."""
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(v in out for v in VERBS)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train", "X-G-fxi"], "Did you mean 'X-G-fix'"),
        (["train", "X-G-fix", "--model.nff=3"], "Did you mean '--model.nf'"),
        (["train", "X-G-fix", "--model.nf=wide"], "model.nf"),
        (["train", "X-G-fix", "--variant", "tiny"], "Unknown variant 'tiny'"),
        (["train", "X-E6"], "of kind 'evaluation'"),
        (["train", "--resume", "/nowhere"], "not a run folder"),
        (["sample", "/nowhere"], "does not exist"),
        (["list", "--statu", "done"], "list --help|Did you mean"),
        (["reproduce", "005"], "Unknown reproduction"),
    ],
)
def test_mistakes_get_one_sentence(argv, text, capsys):
    """Every mistake: exit code 2, one line, with the remedy or the nearest word."""
    import re

    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("verisim: ") and re.search(text, err), err
    assert "Traceback" not in err


def test_help_is_fast_to_load():
    """The overview does not import torch: a typing error should not cost seconds."""
    code = "import sys; from verisim.cli.main import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
