"""What holds for every phantom of the registry, whatever it shows."""

import pytest
import torch

from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS
from verisim.phantoms.base import full_size

CASES = [(name, dims) for name, kind in PHANTOMS.items() for dims in kind.spatial_dims]
# Mean and standard deviation of the first two images of seed 0 at 32 pixels a side: a phantom is named by
# its seed, so its pictures must not drift from version to version
GOLDEN = {
    ("chest", 2): (-0.09863, 0.43102),
    ("chest_findings", 2): (-0.09333, 0.42873),
    ("knee", 2): (-0.22791, 0.53225),
    ("brain", 2): (-0.47335, 0.63794),
    ("brain", 3): (-0.74154, 0.46224),
    ("head_ct", 2): (-0.43868, 0.67049),
    ("head_ct", 3): (-0.68116, 0.61305),
    ("growing_brain", 2): (-0.62833, 0.52983),
    ("growing_brain", 3): (-0.84315, 0.35487),
}


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_contract(name, dims):
    """Size as a tuple; images in [-1, 1] with a named modality; one finite number per factor and image."""
    kind, size = PHANTOMS[name], (32,) * dims
    p = kind.make(3, 1, size)
    assert p.images.spec.size == size and p.images.spec.modality.startswith("phantom-")
    assert (p.images.spec.low, p.images.spec.high) == (-1.0, 1.0)
    assert p.images.pixels.dtype == torch.float32 and float(p.images.pixels.abs().max()) <= 1
    assert all(v.shape == (3,) and v.dtype == torch.float32 for v in p.factors.values())
    assert all(torch.isfinite(v).all() for v in p.factors.values())
    labels = p.images.labels
    assert (
        labels.dtype == torch.int64 and 0 <= int(labels.min()) and int(labels.max()) < len(kind.class_names)
    )


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_measure_contract(name, dims):
    """Every measurement is one finite number per image, and does not depend on the images' company."""
    kind = PHANTOMS[name]
    p = kind.make(4, 1, (32,) * dims)
    together = kind.measure(p.images)
    alone = kind.measure(p.images.subset(torch.tensor([2])))
    for key, v in together.items():
        assert v.shape == (4,) and v.dtype == torch.float64 and torch.isfinite(v).all(), key
        assert torch.allclose(alone[key], v[2:3], atol=1e-6), key


@pytest.mark.parametrize("name", list(PHANTOMS))
def test_a_number_is_the_side_in_the_first_dimension(name):
    """make(n, seed, 32) draws squares wherever the phantom can."""
    kind = PHANTOMS[name]
    size = (32,) * kind.spatial_dims[0]
    assert torch.equal(kind.make(2, 3, 32).images.pixels, kind.make(2, 3, size).images.pixels)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_segmentations_name_their_codes(name, dims):
    """A label map has the images' grid and codes that the registry names; without names there is none."""
    kind = PHANTOMS[name]
    p = kind.make(4, 1, (32,) * dims)
    if not kind.structures:
        assert p.segmentation is None
        return
    assert p.segmentation.shape == (4, 1, *(32,) * dims) and p.segmentation.dtype == torch.uint8
    assert int(p.segmentation.max()) < len(kind.structures) and kind.structures[0] == "background"
    unit = "area" if dims == 2 else "volume"
    assert all(f"{unit}_{s}" in p.factors for s in kind.structures[1:])


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_threads_change_nothing(name, dims):
    """The number of threads is no part of the definition."""
    make = PHANTOMS[name].make
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = make(40, 2, (16,) * dims)
        torch.set_num_threads(3)
        assert torch.equal(make(40, 2, (16,) * dims).images.pixels, one.images.pixels)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "dims"), CASES)
def test_pictures_do_not_drift(name, dims):
    """Golden numbers: the same seed shows the same pictures in every version."""
    x = PHANTOMS[name].make(2, 0, (32,) * dims).images.pixels.double()
    mean, deviation = GOLDEN[name, dims]
    assert float(x.mean()) == pytest.approx(mean, abs=2e-4)
    assert float(x.std()) == pytest.approx(deviation, abs=2e-4)


def test_size_rules():
    """A number follows the first dimension; the error lists what is possible."""
    assert full_size(32, (2, 3), 16, "here") == (32, 32) and full_size((16, 17, 18), (2, 3), 16, "here") == (
        16,
        17,
        18,
    )
    with pytest.raises(VerisimError, match=r"here: size=\(32, 32\); 3 sides of at least 16"):
        full_size((32, 32), (3,), 16, "here")
