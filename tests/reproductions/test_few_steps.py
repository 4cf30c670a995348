"""Few steps: the reproduction runs end to end and goes on, and its claims say what its numbers say."""

import json

import pytest

from verisim.cli.main import main
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate
from verisim.reproductions import few_steps, reproduction
from verisim.reproductions.few_steps_claims import claims
from verisim.reproductions.result import Options


def test_smoke_run_and_again(tmp_path, monkeypatch, capsys):
    """A teacher, its student of 4 steps and adversarial diffusion; the second call trains and draws nothing."""
    call = ["reproduce", "17-few", "--scale", "smoke", "--out", str(tmp_path), "--minutes", "0.02"]
    assert main(call) == 0
    path = tmp_path / "17-few.16px.smoke.json"
    numbers = json.loads(path.read_text())["numbers"]["16"]
    facts = {name: row["facts"] for name, row in numbers["rows"].items()}
    counted = {name: f["network_evaluations"] for name, f in facts.items()}
    teacher = {"X-D-fix@0": 35, "X-D-fix:ddim-4@0": 4, "X-D-fix:dpmpp_2m-4@0": 4, "X-D-fix:ddim-16@0": 16}
    assert counted == {**teacher, "17-G.1-4@0": 4, "17-G.4@0": 4}
    assert facts["17-G.1-4@0"]["model"] == "distilled" and facts["17-G.1-4@0"]["steps"] % 2 == 0  # two phases
    assert facts["17-G.1-4@0"]["parameters"] == facts["X-D-fix@0"]["parameters"]
    assert numbers["rows"]["17-G.4@0"]["factors"] and numbers["rows"]["17-G.4@0"]["diversity"]["value"] > 0
    real, noise = (numbers["controls"][k] for k in ("real", "noise"))
    assert real["fd"]["FD(random)"]["value"] < 0.1 * noise["fd"]["FD(random)"]["value"]
    names = {c["name"] for c in json.loads(path.read_text())["claims"]}
    assert names == {"controls", "student-4", "student-as-good", "adversarial"}
    assert (tmp_path / "figures" / "17-few.16px.smoke" / "17-G.1-4.png").exists()

    def nothing(*_, **__):
        raise AssertionError("trained or drawn again")

    monkeypatch.setattr("verisim.reproductions.runs._start", nothing)
    monkeypatch.setattr("verisim.tasks.contestants._draw", nothing)
    assert main(call) == 0
    assert json.loads(path.read_text())["numbers"]["16"] == numbers
    monkeypatch.undo()

    assert main([*call, "--systems", "17-G.1"]) == 0  # without adversarial diffusion
    left = json.loads(path.read_text())["numbers"]["16"]["rows"]
    assert left == {k: v for k, v in numbers["rows"].items() if k != "17-G.4@0"}
    capsys.readouterr()


def test_a_students_budget_is_half_of_its_teachers(tmp_path, monkeypatch):
    """At 0.1 s a step, 6 minutes of the teacher are 3 of a student: 1080 steps of 5/3 the cost, over its phases."""
    card = type("Card", (), {"training": {"seconds": 360.0, "steps": 3600}})
    monkeypatch.setattr(few_steps, "read_card", lambda path: card)
    scale = few_steps.replace(few_steps.SCALES["small"], minutes=6.0)
    data = few_steps.DataSettings("", "chest", 100, 32)
    jobs = few_steps.student_jobs(tmp_path, data, scale)
    told = {
        j.folder.name: [j.overrides[f"model.{k}"] for k in ("steps", "phases", "phase_steps")] for j in jobs
    }
    assert told == {
        "17-G.1-1@0": [1, 5, 216],
        "17-G.1-2@0": [2, 4, 270],
        "17-G.1-4@0": [4, 3, 360],
        "17-G.1-8@0": [8, 2, 540],
    }
    assert all(j.overrides["training.max_steps"] == 1080 for j in jobs)
    adversarial = few_steps.first_jobs(tmp_path, data, ("17-G.4",), scale)[1]
    assert adversarial.overrides["training.max_minutes"] == 9.0


def row(fd, domain=None, se=0.05):
    values = {"FD(random)": fd, "FD(domain)": fd if domain is None else domain}
    fd = {k: Estimate(v, v - 2 * se, v + 2 * se, se).as_dict() for k, v in values.items()}
    return {"fd": fd}


def table(**changes):
    rows = {
        "X-D-fix@0": row(2.0),
        "X-D-fix:ddim-1@0": row(20.0),
        "X-D-fix:ddim-4@0": row(9.0),
        "X-D-fix:dpmpp_2m-4@0": row(6.0),
        "X-D-fix:ddim-32@0": row(2.1),
        "17-G.1-1@0": row(8.0),
        "17-G.1-4@0": row(2.05),
        "17-G.4@0": row(3.0),
    }
    return {"rows": {**rows, **changes}, "controls": {"real": row(0.5), "noise": row(90.0)}}


def verdicts(numbers):
    return {c.name: c.holds for c in claims(numbers)}


def test_claims_follow_the_numbers():
    names = ("controls", "student-1", "student-4", "student-as-good", "adversarial")
    assert verdicts(table()) == dict.fromkeys(names, True)


@pytest.mark.parametrize(
    ("name", "changes", "holds"),
    [
        ("student-1", {"17-G.1-1@0": row(21.0)}, False),
        ("student-4", {"17-G.1-4@0": row(7.0)}, False),  # nearer than DDIM, but not than DPM-Solver++
        ("student-4", {"17-G.1-4@0": row(6.05)}, None),  # a tie
        ("student-4", {"17-G.1-4@0": row(3.0, domain=7.0)}, None),  # the networks disagree
        ("student-as-good", {"17-G.1-4@0": row(2.4)}, False),
        ("student-as-good", {"17-G.1-4@0": row(2.15)}, None),  # its interval reaches the teacher's
        ("adversarial", {"17-G.4@0": row(7.0)}, False),
        ("controls", {"17-G.4@0": row(0.4)}, False),
    ],
)
def test_each_claim_can_fail(name, changes, holds):
    assert verdicts(table(**changes))[name] is holds


def test_noise_too_near_fails_the_controls():
    numbers = {**table(), "controls": {"real": row(0.5), "noise": row(4.0)}}
    assert verdicts(numbers)["controls"] is False


def test_claims_of_what_was_left_out_are_left_out():
    rows = {k: v for k, v in table()["rows"].items() if not k.startswith("17-")}
    assert set(verdicts({**table(), "rows": rows})) == {"controls"}


def test_unknown_system(tmp_path):
    with pytest.raises(
        VerisimError, match=r"^16-A is not part of this table\. It has: X-D-fix, 17-G\.1, 17-G\.4\.$"
    ):
        next(reproduction("17-few")(Options("smoke", tmp_path, tmp_path, systems=("16-A",))))
