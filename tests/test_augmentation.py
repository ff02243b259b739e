"""Against image-by-image versions that say what the authors' code does, with SciPy for the rotation."""

import pytest
import torch
from scipy.ndimage import rotate as scipy_rotate
from torch.nn.functional import interpolate

from dc_lightning.augmentation.paper import OperationPerImage, crop, noise, rotate, scale

SIZES = [(28, 28), (32, 32), (8, 8), (28, 20)]


def batch(size, count=60, channels=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, *size, generator=generator)
    return images, images.mean(dim=(2, 3))  # as if each were a batch of its own


def twin():
    return torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)


def augment(images, operations, generator, batch_sizes=None):
    return OperationPerImage(operations).of_batches(images, generator, batch_sizes or [len(images)])


def centre_cut(frame, size):
    top, left = (int((have - want) / 2) for have, want in zip(frame.shape[-2:], size, strict=True))
    return frame[:, top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize("size", SIZES)
def test_rotate_is_scipys(size):
    images, mean = batch(size)
    generator, other = twin()
    rotated = rotate(images, generator, mean)
    angles = torch.randint(-45, 45, (len(images),), generator=other)
    for image, angle, fill, ours in zip(images, angles, mean.mean(dim=1), rotated, strict=True):
        frame = scipy_rotate(image.numpy(), int(angle), axes=(-2, -1), cval=float(fill))
        torch.testing.assert_close(ours, torch.tensor(centre_cut(frame, size)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_scale_is_the_authors(size):
    images, mean = batch(size)
    generator, other = twin()
    scaled = scale(images, generator, mean)
    factors = 0.8 + 0.4 * torch.rand(2, len(images), 1, generator=other, dtype=torch.float64)
    for image, factor_h, factor_w, ours in zip(images, *factors, scaled, strict=True):
        height, width = int(factor_h * size[0]), int(factor_w * size[1])
        side = max(height, width, *size)
        frame = torch.zeros(3, side, side)
        top, left = (side - height) // 2, (side - width) // 2
        frame[:, top : top + height, left : left + width] = interpolate(image[None], [height, width])[0]
        assert torch.equal(ours, centre_cut(frame, size))


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_the_authors(size):
    images, mean = batch(size)
    generator, other = twin()
    cropped = crop(images, generator, mean)
    offsets = torch.randint(8, (2, len(images), 1), generator=other)
    for image, fill, top, left, ours in zip(images, mean, *offsets, cropped, strict=True):
        frame = fill.view(-1, 1, 1).repeat(1, size[0] + 8, size[1] + 8)
        frame[:, 4:-4, 4:-4] = image
        expected = frame[:, int(top) : int(top) + size[0], int(left) : int(left) + size[1]]
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_noise_has_its_size():
    images, mean = batch((28, 28))
    added = noise(images, torch.Generator().manual_seed(0), mean) - images
    assert float(added.std()) == pytest.approx(0.001, rel=0.02)
    assert abs(float(added.mean())) < 1e-5


def test_draws_cover_their_ranges():
    """Offsets 0..7, whole angles -45..44, factors 0.8..1.2 on each side by itself, all about equally often."""
    ramp = torch.arange(16.0).repeat(4000, 1, 16, 1)  # a pixel says which column it came from
    mean = torch.full((4000, 1), -100.0)
    left = crop(ramp, torch.Generator().manual_seed(0), mean)[:, 0, 8, 8] - 8 + 4
    counts = torch.bincount(left.round().long(), minlength=8)
    assert counts.shape == (8,)
    assert counts.min() > 400
    ones = torch.ones(4000, 1, 20, 20)
    scaled = scale(ones, torch.Generator().manual_seed(0), mean)
    heights, widths = scaled[:, 0, :, 10].sum(1), scaled[:, 0, 10].sum(1)
    for sides in (heights, widths):
        assert (int(sides.min()), int(sides.max())) == (16, 20)
        assert float((sides == 16).float().mean()) == pytest.approx(1 / 8, abs=0.03)
    assert abs(float(torch.corrcoef(torch.stack([heights, widths]))[0, 1])) < 0.05
    dot = torch.zeros(4000, 1, 41, 41)
    dot[:, :, 20, 38:41] = 1  # right of the centre; where it goes says the angle
    turned = rotate(dot, torch.Generator().manual_seed(0), torch.zeros(4000, 1))[:, 0].clamp(min=0)
    grid = torch.arange(41.0) - 20
    rows, columns = ((turned * axis).sum((1, 2)) for axis in (grid[:, None], grid[None, :]))
    angles = torch.rad2deg(torch.atan2(-rows, columns))  # about: the dot is some pixels large
    assert -47 < float(angles.min()) < -43
    assert 41 < float(angles.max()) < 47
    assert torch.histc(angles, bins=9, min=-45, max=45).min() > 300


def test_every_image_gets_one_operation_as_likely_as_the_others():
    images = torch.zeros(9000, 1, 2, 2)
    operations = [lambda x, generator, mean, add=add: x + add for add in (1.0, 2.0, 3.0)]
    out = augment(images, operations, torch.Generator().manual_seed(0))
    counts = torch.bincount(out[:, 0, 0, 0].long(), minlength=4)
    assert counts[0] == 0
    assert all(abs(int(count) - 3000) < 200 for count in counts[1:])
    assert torch.equal(images, torch.zeros_like(images))


@pytest.mark.parametrize("sizes", [None, [20, 40]])
def test_the_mean_is_that_of_the_whole_batch(sizes):
    images, _ = batch((8, 8))
    stamped = augment(images, [lambda x, generator, mean: mean] * 2, torch.Generator().manual_seed(0), sizes)
    means = [part.mean(dim=(0, 2, 3)).expand(len(part), 3) for part in images.split(sizes or len(images))]
    torch.testing.assert_close(stamped, torch.cat(means))


def test_images_keep_their_places():
    images = torch.randn(50, 1, 2, 2)
    assert torch.equal(augment(images, [lambda x, *_: x] * 3, torch.Generator().manual_seed(0)), images)


def test_the_same_generator_gives_the_same_images():
    images, _ = batch((28, 28))
    first, again = (augment(images, [crop, scale, rotate, noise], g) for g in twin())
    assert torch.equal(first, again)
