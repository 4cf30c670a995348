"""Label maps: on the grid of their image, codes kept exactly, and refused where they would mean something else."""

import numpy as np
import pytest
import torch
from hostile import manifest, nifti, noise, png

from verisim.data.folder import load_images
from verisim.data.resample import fit_image, nearest
from verisim.data.spec import Images, ImageSpec
from verisim.data.stream import BatchStream
from verisim.errors import DataError, RangeError

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


def codes(seed, size=(30, 30)):
    return np.random.default_rng(seed).integers(0, 4, size, dtype=np.uint8)


def pairs(folder, n=6, size=(30, 30)):
    """n patients with an image and a label map each."""
    rows = []
    for i in range(n):
        png(folder / f"i{i}.png", noise(i, size))
        png(folder / f"m{i}.png", codes(i, size))
        rows.append({"image": f"i{i}.png", "patient": f"p{i}", "split": "test" if i == 0 else "train",
                     "seg": f"m{i}.png"})  # fmt: skip
    manifest(folder, rows)
    return rows


def volumes(folder, n=3, mask=None, affine=AFFINE):
    """n patients with a volume and a label map; `mask` and `affine` spoil the second patient's."""
    rows = []
    for i in range(n):
        nifti(folder / f"v{i}.nii.gz", noise(i, (12, 10, 8)).astype(np.float32), AFFINE)
        spoilt = mask if i == 1 and mask is not None else codes(i, (12, 10, 8))
        nifti(folder / f"m{i}.nii.gz", spoilt, affine if i == 1 else AFFINE)
        rows.append({"image": f"v{i}.nii.gz", "patient": f"p{i}", "seg": f"m{i}.nii.gz"})
    manifest(folder, rows)


def test_codes_follow_their_image(tmp_path):
    """Down by an odd factor the code is the centre pixel's, exactly; image, name and map stay together."""
    pairs(tmp_path)
    data = load_images(tmp_path, 10, mask="seg", structures=("background", "oedema", "core", "rim"))
    train = data["train"]
    assert train.segmentation.dtype == torch.uint8 and train.segmentation.shape == (5, 1, 10, 10)
    for k, name in enumerate(train.names):
        i = int(name[1])
        assert torch.equal(train.segmentation[k, 0], torch.from_numpy(codes(i)[1::3, 1::3]))
    assert data.structures == ("background", "oedema", "core", "rim")
    plain = load_images(tmp_path, 10)
    assert torch.equal(plain["train"].pixels, train.pixels) and plain["train"].segmentation is None
    assert plain.structures == () and plain.fingerprint != data.fingerprint


def test_padding_and_cropping_follow_their_image(tmp_path):
    """A mask that is 1 wherever its image is white stays so under every fit; padding is background."""
    for fit in ("pad", "crop", "stretch"):
        for size in ((8, 8), (8, 4), (16, 8)):
            image = np.zeros((1, 48, 24), np.uint8)
            image[0, 6:18, 3:15] = 1
            fine, _ = fit_image(image.astype(np.float32), size, fit)
            coarse, _ = fit_image(image, size, fit, codes=True)
            assert coarse.dtype == np.uint8 and coarse.shape == fine.shape
            sure = np.isfinite(fine) & ((fine == 0) | (fine == 1))
            assert (coarse[sure] == fine[sure]).all() and not coarse[np.isnan(fine)].any()
    assert nearest(np.arange(5)[None], (5,)).tolist() == [[0, 1, 2, 3, 4]]
    assert nearest(np.arange(3)[None], (6,)).tolist() == [[0, 0, 1, 1, 2, 2]]  # up: repeated, no new codes


def test_volumes_and_their_grid(tmp_path):
    """A NIfTI map is taken; of another shape or another place it is refused with both numbers."""
    volumes(tmp_path)
    data = load_images(tmp_path, (8, 10, 12), mask="seg", split=None)["all"]
    assert torch.equal(data.segmentation[1, 0], torch.from_numpy(codes(1, (12, 10, 8)).T.copy()))
    volumes(tmp_path, mask=codes(1, (12, 10, 7)))
    with pytest.raises(
        DataError, match=r"m1.nii.gz has 7 x 10 x 12 pixels where v1.nii.gz has 8 x 10 x 12.*Resample"
    ):
        load_images(tmp_path, (8, 8, 8), mask="seg", split=None, on_error="stop")
    moved = AFFINE.copy()
    moved[0, 3] = 3.0
    volumes(tmp_path, affine=moved)
    with pytest.raises(
        DataError,
        match=r"m1.nii.gz lies up to 3 mm away from v1.nii.gz.*\[0.0, 0.0, 1.5, 3.0\], .* and \[\[0.0, 0.0, 1.5, 0.0\]",
    ):
        load_images(tmp_path, (8, 8, 8), mask="seg", split=None, on_error="stop")
    moved[0, 3] = 0.1  # less than a tenth of a voxel: rounding
    volumes(tmp_path, affine=moved)
    assert len(load_images(tmp_path, (8, 8, 8), mask="seg", split=None, on_error="stop")["all"]) == 3


def test_the_same_place_written_differently_is_refused(tmp_path):
    """A map that is flipped against its image has the same shape and spacing, and another affine."""
    flipped = AFFINE.copy()
    flipped[0, 0], flipped[0, 3] = -1.5, 1.5 * 11
    volumes(tmp_path, affine=flipped)
    data = load_images(
        tmp_path, (8, 8, 8), mask="seg", split=None, minimum=1
    )  # skip: left out, with its reason
    assert len(data["all"]) == 2 and "lies up to 16.5 mm away" in data.skipped[0][1]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.full((12, 10, 8), 0.5, np.float32), r"960 of 960 values are no codes, the first is 0.5"),
        (np.full((12, 10, 8), 300, np.int16), r"the first is 300; a label map holds integers from 0 to 255"),
        (np.full((12, 10, 8), -1, np.int16), r"the first is -1;"),
    ],
)
def test_what_is_no_label_map(tmp_path, array, text):
    """Interpolated, too large and negative codes."""
    volumes(tmp_path, mask=array)
    with pytest.raises(DataError, match=text):
        load_images(tmp_path, (8, 8, 8), mask="seg", split=None, on_error="stop")


def test_unknown_codes_and_colour(tmp_path):
    """A code that structures do not name is an error under both policies; a colour picture is no label map."""
    rows = pairs(tmp_path)
    with pytest.raises(
        DataError,
        match=r"m0.png: the label map holds 3, which structures do not name; known are 0 none, 1 a, 2 b",
    ):
        load_images(tmp_path, 10, mask="seg", structures=("none", "a", "b"), on_error="skip")
    png(tmp_path / "m2.png", noise(0, (30, 30, 3)))
    with pytest.raises(DataError, match=r"m2.png: a RGB image with 3 channels is no label map"):
        load_images(tmp_path, 10, mask="seg", on_error="stop")
    grey = codes(2)
    png(tmp_path / "m2.png", np.stack([grey] * 3, -1))
    train = load_images(tmp_path, 10, mask="seg", on_error="stop")["train"]
    assert torch.equal(train.segmentation[1, 0], torch.from_numpy(grey[1::3, 1::3]))
    assert len(rows) == 6


def test_missing_masks(tmp_path):
    """An empty cell or a missing file: an error that names the patient, or left out; a wrong column is named."""
    rows = pairs(tmp_path)
    rows[3]["seg"] = ""
    manifest(tmp_path, rows)
    with pytest.raises(DataError, match=r"missing or unreadable: p3. p3: row 5 of the manifest has no seg"):
        load_images(tmp_path, 10, mask="seg", on_error="stop")
    assert len(load_images(tmp_path, 10, mask="seg")["train"]) == 4
    (tmp_path / "m4.png").unlink()
    data = load_images(tmp_path, 10, mask="seg")
    assert len(data["train"]) == 3 and {n for n, _ in data.skipped} == {"p3", "m4.png"}
    with pytest.raises(DataError, match=r"no column 'sge' for mask. Did you mean 'seg'\?"):
        load_images(tmp_path, 10, mask="sge")
    with pytest.raises(DataError, match="cannot be both image and mask"):
        load_images(tmp_path, 10, mask="image")
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(DataError, match=r"mask='seg' names columns of a manifest.csv, and there is none"):
        load_images(tmp_path, 10, mask="seg")


def test_a_lost_lesion_is_noted(tmp_path):
    """One pixel that no new pixel's centre meets vanishes: said in the notes."""
    pairs(tmp_path)
    small = np.zeros((30, 30), np.uint8)
    small[0, 0] = 9
    png(tmp_path / "m3.png", small)
    notes = load_images(tmp_path, 10, mask="seg").notes
    assert "1 label map(s) lost a structure smaller than the new pixels: i3.png" in notes


def images(n=6):
    seg = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 8, 8).contiguous()
    pixels = (seg.float() / n).expand(n, 2, 8, 8)
    return Images(pixels, ImageSpec((8, 8), 2), labels=torch.arange(n), segmentation=seg)


def test_segmentations_stay_with_their_images():
    """subset, quantise and to_range keep them; wrong shapes and types are refused with what is meant."""
    x = images()
    assert x.subset(torch.tensor([4, 1])).segmentation[:, 0, 0, 0].tolist() == [4, 1]
    assert x.subset(x.labels > 3).segmentation[:, 0, 0, 0].tolist() == [4, 5]
    assert torch.equal(x.quantise(4).segmentation, x.segmentation)
    assert torch.equal(x.to_range(0, 1).segmentation, x.segmentation)
    for bad in (
        x.segmentation.long(),
        x.segmentation[:, 0],
        x.segmentation[:2],
        x.segmentation.expand(6, 2, 8, 8),
    ):
        with pytest.raises(
            RangeError, match=r"segmentation: .* where \(6, 1, 8, 8\) of torch.uint8 is meant"
        ):
            Images(x.pixels, x.spec, segmentation=bad)


def test_batches_carry_masks():
    """Each mask of a batch is its image's; without segmentations there is no key."""
    x = images()
    for _, batch in zip(range(4), BatchStream(x, 4, None, lambda: 0)):
        assert set(batch) == {"image", "label", "mask"} and batch["mask"].dtype == torch.uint8
        assert torch.equal(batch["mask"][:, 0, 0, 0].long(), batch["label"])
        assert torch.allclose(batch["image"][:, 0, 0, 0], batch["label"] / 6)
    plain = Images(x.pixels, x.spec)
    assert set(next(iter(BatchStream(plain, 4, None, lambda: 0)))) == {"image"}
