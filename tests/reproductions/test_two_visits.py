"""The exercise of two visits: smoke run on moved phantoms, nobody predicted by a model of himself, claims, refusals."""

import json

import numpy as np
import pytest

from verisim.cli.main import main
from verisim.data.writers import write_image
from verisim.errors import VerisimError
from verisim.phantoms import growing_brain
from verisim.reproductions import reproduction
from verisim.reproductions.result import Options
from verisim.reproductions.two_visits_claims import claims
from verisim.training.checkpoint import load_state

MADE = ("copied", "others", "unregistered") + tuple(
    f"{what}, {unit}"
    for unit in ("years", "weeks")
    for what in ("predicted", "unchanged", "changed", "reconstructed")
)


def test_smoke_run(tmp_path, capsys):
    """Every control is measured; the left-out person's name is in no model; no figure is drawn."""
    assert main(["reproduce", "002-visits", "--scale", "smoke", "--out", str(tmp_path)]) == 0
    body = json.loads((tmp_path / "002-visits.phantoms.smoke.json").read_text())
    rows = body["numbers"]["rows"]
    assert [r["patient"] for r in rows] == ["subject-0000", "subject-0001", "subject-0002"]
    for r in rows:
        assert all(set(r[k]) == {"psnr", "ssim", "mae"} for k in MADE)
        assert r["years"] == pytest.approx(14 / 365.25, abs=1e-3) and r["extrapolated"] is False
        state = load_state(tmp_path / "runs" / "phantoms-30-years" / f"without-{r['patient']}.safetensors")
        assert len(state["run"]["names"]) == 2 and r["patient"] not in state["run"]["names"]
    assert len(body["numbers"]["registrations"]) == 5 and body["numbers"]["failed"] == []
    assert {c["name"]: c["holds"] for c in body["claims"]}["registered"] is True
    assert not list(tmp_path.rglob("*.png"))
    assert "claims" in capsys.readouterr().out


def made_up(**psnr):
    """Two people, and how well each picture meets the second visit."""
    base = {k: 20.0 for k in MADE} | {"unregistered": 15.0, "others": 18.0, "predicted, weeks": 10.0}
    base |= {f"{k}, years": v for k, v in psnr.items()}
    rows = [
        {"patient": f"p{k}", **{n: {"psnr": v + k, "ssim": 0.9} for n, v in base.items()}} for k in range(2)
    ]
    fits = [{"same_patient": True, "correlation": 0.97}, {"same_patient": False, "correlation": 0.9}]
    return {"rows": rows, "registrations": fits, "failed": []}


def test_claims_follow_the_numbers():
    """All people better: yes. None: no. Some: undecided. A failed registration is named."""
    found = {c.name: c.holds for c in claims(made_up(predicted=21.0, changed=19.0, unchanged=20.5))}
    assert found == {"fits": True, "registered": True, "nothing-changes": True, "others": True, "age": True,
                     "change": False, "identity": True, "unit": True}  # fmt: skip
    assert {c.name: c.holds for c in claims(made_up(predicted=12.0))}["nothing-changes"] is False
    mixed = made_up(predicted=21.0)
    mixed["rows"][0]["predicted, years"]["psnr"] = 19.0
    assert {c.name: c.holds for c in claims(mixed)}["nothing-changes"] is None
    lost = made_up() | {"failed": ["long_patient03_study2_flair.nii.gz"]}
    fits = claims(lost)[0]
    assert fits.holds is False and "failed: long_patient03_study2_flair.nii.gz" in fits.evidence


def test_one_person_is_not_enough(tmp_path):
    """Two visits of one person leave nobody to learn from."""
    made = growing_brain.make(1, 0, (16, 16, 16)).images
    place = np.diag([8.75, 8.75, 8.75, 1.0])[[2, 1, 0, 3]]
    for k in range(2):
        write_image(tmp_path / f"{k}.nii.gz", made.pixels[0], made.spec, {}, place)
    (tmp_path / "manifest.csv").write_text("image,patient,days\n0.nii.gz,anna,0\n1.nii.gz,anna,90\n")
    with pytest.raises(VerisimError, match=r"needs two people or more.*there are 1, 1 of them seen twice"):
        next(reproduction("002-visits")(Options("smoke", tmp_path / "out", tmp_path, data=str(tmp_path))))
