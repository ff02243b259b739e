"""The siamese augmentation (DSA): numbers of the authors' code, distributions, one draw for both batches."""

import math

import numpy as np
import pytest
import torch
from conftest import GOLDEN_DSA_DM, assert_golden, assert_golden_summary, normal
from torch.nn.functional import affine_grid, grid_sample

from dc_lightning.augmentation import siamese
from dc_lightning.augmentation.siamese import OPERATIONS, Siamese, draw_parameters
from dc_lightning.errors import InputError

NAMES = {
    "brightness": {"shift": "shift"},
    "saturation": {"factor": "factor"},
    "contrast": {"factor": "factor"},
    "color": {"brightness": "shift", "saturation": "saturation_factor", "contrast": "contrast_factor"},
    "crop": {"rows": "rows", "columns": "columns"},
    "cutout": {"rows": "rows", "columns": "columns"},
    "flip": {"flip": "mirrored"},
    "scale": {"x": "x", "y": "y"},
    "rotate": {"degrees": "degrees"},
}


def apply_golden(images, step):
    """An operation with the parameters that the golden values were computed with."""
    names = NAMES[step["operation"]]
    parameters = {ours: torch.from_numpy(np.array(step["parameters"][theirs])) for theirs, ours in names.items()}
    return getattr(siamese, step["operation"])(images, **parameters)


def case(entry):
    return f"{entry['operation']}-{'shared' if entry['shared'] else 'each'}-{entry['channels']}x{entry['height']}"


@pytest.mark.parametrize("entry", GOLDEN_DSA_DM["operations"], ids=case)
def test_operations_and_their_derivatives_are_those_of_the_authors_code(entry):
    shape = entry["batch"], entry["channels"], entry["height"], entry["width"]
    images = normal(entry["input_seed"], *shape).requires_grad_()
    output = apply_golden(images, entry)
    assert_golden_summary(output, entry["output"])
    dot = (output * normal(entry["weights_seed"], *shape)).sum()
    assert_golden(dot.item(), entry["output_dot"])
    assert_golden_summary(torch.autograd.grad(dot, images)[0], entry["input_grad"])


@pytest.mark.parametrize("entry", GOLDEN_DSA_DM["siamese"], ids=lambda e: f"{e['operation']}-{e['seed']}")
def test_both_batches_get_what_the_authors_code_gives_them(entry):
    shape = entry["channels"], entry["size"], entry["size"]
    for name in ("real", "synthetic"):
        images = normal(entry[f"{name}_seed"], entry[f"{name}_count"], *shape)
        assert_golden_summary(apply_golden(images, entry), entry[name])


@pytest.mark.parametrize("entry", GOLDEN_DSA_DM["independent"], ids=lambda e: e["operation"])
def test_parameters_of_each_image_are_those_of_the_authors_code(entry):
    images = normal(entry["input_seed"], entry["count"], entry["channels"], entry["size"], entry["size"])
    assert_golden_summary(apply_golden(images, entry), entry["output"])


@pytest.mark.parametrize("entry", GOLDEN_DSA_DM["multiple"], ids=lambda e: str(e["shared"]))
def test_operations_one_after_the_other_are_those_of_the_authors_code(entry):
    images = normal(entry["input_seed"], entry["count"], entry["channels"], entry["size"], entry["size"])
    for step in entry["steps"]:
        images = apply_golden(images, step)
    assert_golden_summary(images, entry["output"])


@pytest.mark.parametrize("entry", GOLDEN_DSA_DM["geometry"], ids=lambda e: str(e["size"]))
def test_draws_cover_the_ranges_of_the_authors_code(entry):
    """Whole numbers from one limit to the other, about equally often, at even and odd sides."""
    size, generator = entry["size"], torch.Generator().manual_seed(0)
    for name in ("crop", "cutout"):
        drawn = draw_parameters(name, 20000, (size, size), generator)
        for values in drawn.values():
            low, high = entry[f"{name}_smallest"], entry[f"{name}_largest"]
            counts = torch.bincount(values - low, minlength=high - low + 1)
            assert len(counts) == high - low + 1
            expected = 20000 / len(counts)
            assert float((counts - expected).abs().max()) < 6 * expected**0.5
    ones = torch.ones(1, 1, size, size)
    middle = torch.tensor([size // 2])
    assert int((siamese.cutout(ones, middle, middle)[0, 0] == 0).any(dim=0).sum()) == entry["cutout_size"]


@pytest.mark.parametrize(
    ("name", "parameter", "low", "high"),
    [
        ("color", "shift", -0.5, 0.5),
        ("color", "saturation_factor", 0.0, 2.0),
        ("color", "contrast_factor", 0.5, 1.5),
        ("scale", "x", 1 / 1.2, 1.2),
        ("scale", "y", 1 / 1.2, 1.2),
        ("rotate", "degrees", -15.0, 15.0),
    ],
)
def test_real_numbers_are_drawn_uniformly(name, parameter, low, high):
    values = draw_parameters(name, 40000, (8, 8), torch.Generator().manual_seed(0))[parameter]
    assert low <= float(values.min()) < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < float(values.max()) <= high
    counts = torch.histc(values, bins=10, min=low, max=high)
    assert float((counts - 4000).abs().max()) < 400
    if name == "scale":
        both = draw_parameters(name, 40000, (8, 8), torch.Generator().manual_seed(0))
        assert abs(float(torch.corrcoef(torch.stack([both["x"], both["y"]]))[0, 1])) < 0.03


@pytest.mark.parametrize("size", [(21, 21), (21, 45), (45, 21)])
def test_rotate_turns_by_its_angle_whatever_the_shape(size):
    dots = torch.zeros(1, 2, *size, dtype=torch.float64)
    rows, columns = size[0] // 2, size[1] // 2
    dots[0, 0, rows, columns + 8] = dots[0, 1, rows - 8, columns] = 1  # right of the centre, above it
    turned = siamese.rotate(dots, torch.tensor([15.0], dtype=torch.float64))[0]
    along = [torch.arange(side, dtype=torch.float64) - side // 2 for side in size]
    found = [((image * along[1]).sum() / image.sum(), -(image.sum(dim=1) @ along[0]) / image.sum()) for image in turned]
    cos, sin = 8 * math.cos(math.pi / 12), 8 * math.sin(math.pi / 12)
    torch.testing.assert_close(
        torch.tensor(found).double(), torch.tensor([(cos, sin), (-sin, cos)]).double(), atol=0.1, rtol=0
    )


def test_a_flip_is_one_in_two():
    drawn = draw_parameters("flip", 40000, (8, 8), torch.Generator().manual_seed(0))["mirrored"]
    assert float(drawn.float().mean()) == pytest.approx(0.5, abs=0.01)


def test_operations_are_equally_likely_and_one_for_the_batch():
    """Told apart by what they do to an image that each operation changes in a way of its own."""
    marked = Siamese("crop_flip_color")
    images = torch.zeros(4, 1, 9, 9)
    images[:, :, 4, 1] = 1.0
    kinds = {"color": 0, "crop": 0, "flip": 0}
    for seed in range(3000):
        changed = marked.batch(images, seed)
        brightened = (changed[:, 0, 0, 0] != 0).any()
        at = changed.flatten(1).argmax(dim=1)
        mirrored = set(at.tolist()) <= {4 * 9 + 1, 4 * 9 + 7}
        kinds["color" if brightened else "flip" if mirrored else "crop"] += 1
    assert all(850 < count < 1150 for count in kinds.values()), kinds


def test_real_and_synthetic_images_get_one_draw():
    both = Siamese("color_crop_cutout_flip_scale_rotate")
    images = torch.randn(5, 3, 16, 16)
    changed = 0
    for seed in range(40):
        real, synthetic = both.pair(images, images[:2], seed)
        assert torch.equal(real[:2], synthetic)
        again, _ = both.pair(images, images[:2], seed)
        assert torch.equal(real, again)
        changed += not torch.equal(real, images)
    assert changed > 30


def test_in_a_batch_every_image_has_parameters_of_its_own():
    images = torch.randn(1, 1, 16, 16).expand(6, 1, 16, 16)
    for name in ("color", "crop", "cutout", "scale", "rotate"):
        assert len(Siamese(name).batch(images, 1).unique(dim=0)) > 1


def test_a_single_grey_image_takes_every_operation():
    """The authors' code fails on both with today's torch."""
    image = torch.randn(1, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    for name in OPERATIONS:
        _, synthetic = Siamese(name).pair(image.detach().repeat(3, 1, 1, 1), image, 3)
        assert synthetic.shape == image.shape
        (derivative,) = torch.autograd.grad(synthetic.square().sum(), image)
        assert bool(derivative.isfinite().all())


def test_rotation_is_that_of_an_affine_grid_at_45_degrees_of_a_dot():
    """Anticlockwise: what was right of the centre goes up."""
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 20, 34] = 1
    turned = siamese.rotate(image, torch.tensor([90.0]))
    row, column = divmod(int(turned.flatten().argmax()), 41)
    assert (row, column) == (6, 20)
    identity = affine_grid(torch.eye(2, 3)[None], [1, 1, 41, 41], align_corners=False)
    torch.testing.assert_close(siamese.rotate(image, torch.zeros(1)), grid_sample(image, identity, align_corners=False))


def test_an_unknown_operation_is_named():
    with pytest.raises(InputError, match=r"operation 'flpi'.*color, crop, cutout.*'color_flpi'\. Did you mean 'flip'"):
        Siamese("color_flpi")
