""".npz sets: MedMNIST and plain layouts; pickles are refused before they can run."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from hostile import noise

from verisim.data.folder import load_images
from verisim.data.listing import scan
from verisim.data.npz import headers
from verisim.errors import DataError


class Canary:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickle_is_refused_and_never_run(tmp_path):
    """An object array in an .npz does not execute, whatever its name; the control shows that it could."""
    flag = tmp_path / "executed"
    np.savez(
        tmp_path / "evil.npz", images=noise(0, (4, 8, 8)), train_labels=np.array([Canary(flag)], dtype=object)
    )
    with pytest.raises(DataError, match=r"Python objects \(pickle\).*refused"):
        load_images(tmp_path / "evil.npz", 8)
    np.savez(tmp_path / "evil.npz", images=np.array([Canary(flag)] * 4, dtype=object))
    with pytest.raises(DataError, match="could run code"):
        load_images(tmp_path / "evil.npz", 8)
    assert not flag.exists()
    pickle.loads(pickle.dumps(Canary(flag))).close()
    assert flag.exists()


def test_medmnist_layout(tmp_path):
    """Splits, labels and pixels of {split}_images and {split}_labels come out as they are."""
    train, test = noise(1, (6, 8, 8)), noise(2, (4, 8, 8))
    np.savez(tmp_path / "set.npz", train_images=train, test_images=test, train_labels=np.arange(6)[:, None] % 3,
             test_labels=np.array([[0], [1], [2], [2]]))  # fmt: skip
    data = load_images(tmp_path / "set.npz", 8, label="label")
    assert list(data) == ["train", "test"] and data.class_names == ("0", "1", "2")
    assert data["test"].labels.tolist() == [0, 1, 2, 2]
    back = (data["train"].pixels[:, 0].numpy() + 1) * 127.5
    assert np.allclose(back, train, atol=1e-3)


def test_colour_volumes_and_patients(tmp_path):
    """(N, H, W, 3) is colour, (N, D, H, W) volumes; 'subject' is the patient."""
    np.savez(tmp_path / "c.npz", image=noise(3, (5, 8, 9, 3)), subject=np.array([1, 1, 2, 2, 3]))
    assert [e.patient for e in scan(tmp_path / "c.npz").entries] == ["1", "1", "2", "2", "3"]
    assert load_images(tmp_path / "c.npz", (8, 9), channels=3)["train"].spec.shape == (3, 8, 9)
    np.savez(tmp_path / "v.npz", train_images=noise(4, (3, 6, 8, 8)))
    assert load_images(tmp_path / "v.npz", (6, 8, 8))["train"].pixels.shape == (3, 1, 6, 8, 8)


def test_what_is_no_set(tmp_path):
    """Other arrays, a cut file and a header that lies about its size are refused by name."""
    np.savez(tmp_path / "k.npz", kspace=np.zeros((8, 8), np.complex64))
    with pytest.raises(DataError, match=r"it holds: kspace \(8, 8\) complex64"):
        load_images(tmp_path / "k.npz", 8)
    data = (tmp_path / "k.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.npz: not a readable \.npz"):
        headers(tmp_path / "cut.npz")
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("images.npy", member.getvalue())
    with pytest.raises(DataError, match="1000000 x 1000000 = 1,000,000,000,000 values"):
        headers(tmp_path / "bomb.npz")
    with pytest.raises(DataError, match="a file; name the folder"):
        scan(tmp_path / "x.txt") if (tmp_path / "x.txt").write_text("x") else None
