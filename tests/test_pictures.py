"""Image files mean what a viewer shows: every mode of Pillow, each against a truth of its own; no data by accident."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dc_lightning import InputError, load_synthetic
from dc_lightning.data import ImageFolder
from dc_lightning.pictures import is_grey, read_picture

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2)
ALPHA = np.where(np.arange(8)[:, None] < 4, 0, 255).astype(np.uint8).repeat(8, axis=1)
HALF = np.full((8, 8), 128, np.uint8)


def grey(values):
    return np.repeat(values[None].astype(np.float64), 3, axis=0) / 255


def rgb(values):
    return values.transpose(2, 0, 1).astype(np.float64) / 255


def on(values, alpha, background):
    """Composited by hand."""
    share = alpha[None].astype(np.float64) / 255
    return values * share + np.array(background, np.float64).reshape(3, 1, 1) / 255 * (1 - share)


def palette():
    image = Image.frombytes("P", (8, 8), (RAMP // 4).tobytes())
    image.putpalette([value for n in range(64) for value in (255 - 4 * n, 2 * n, 4 * n)])
    return image


PALETTE = np.stack([255 - 4 * (RAMP // 4), 2 * (RAMP // 4), 4 * (RAMP // 4)], axis=2)
FOUR = RAMP // 4 % 16
DEEP = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
WHITE, BLUE = (255, 255, 255), (0, 0, 255)

# name: how the file is made, its ending, how it is saved, what a viewer shows on white, tolerance
CASES = {
    "1": (lambda: Image.fromarray(RAMP > 100), "png", {}, grey((RAMP > 100) * 255), 0),
    "L": (lambda: Image.fromarray(RAMP), "png", {}, grey(RAMP), 0),
    "L bmp": (lambda: Image.fromarray(RAMP), "bmp", {}, grey(RAMP), 0),
    "L jpeg": (lambda: Image.fromarray(HALF), "jpg", {"quality": 100}, grey(HALF), 0.02),
    "L with a transparent shade": (
        lambda: Image.fromarray(RAMP),
        "png",
        {"transparency": 8},
        grey(np.where(RAMP == 8, 255, RAMP)),
        0,
    ),
    "LA": (lambda: Image.fromarray(np.stack([RAMP, ALPHA], 2)), "png", {}, on(grey(RAMP), ALPHA, WHITE), 0.005),
    "P": (palette, "png", {}, rgb(PALETTE), 0),
    "P gif": (palette, "gif", {}, rgb(PALETTE), 0),
    "P with transparency": (
        palette,
        "png",
        {"transparency": bytes([0] * 32 + [255] * 32)},
        on(rgb(PALETTE), ALPHA, WHITE),
        0.005,
    ),
    "RGB": (lambda: Image.fromarray(COLOURS), "png", {}, rgb(COLOURS), 0),
    "RGB ppm": (lambda: Image.fromarray(COLOURS), "ppm", {}, rgb(COLOURS), 0),
    "RGB tiff": (lambda: Image.fromarray(COLOURS), "tiff", {}, rgb(COLOURS), 0),
    "RGB with a transparent colour": (
        lambda: Image.fromarray(np.where((RAMP == 40)[:, :, None], 7, COLOURS).astype(np.uint8)),
        "png",
        {"transparency": (7, 7, 7)},
        rgb(np.where((RAMP == 40)[:, :, None], 255, COLOURS)),
        0,
    ),
    "RGBA": (lambda: Image.fromarray(np.dstack([COLOURS, ALPHA])), "png", {}, on(rgb(COLOURS), ALPHA, WHITE), 0.005),
    "RGBA half": (lambda: Image.fromarray(np.dstack([COLOURS, HALF])), "png", {}, on(rgb(COLOURS), HALF, WHITE), 0.005),
    "RGBA webp": (
        lambda: Image.fromarray(np.dstack([COLOURS, ALPHA])),
        "webp",
        {"lossless": True},
        on(rgb(COLOURS), ALPHA, WHITE),
        0.005,
    ),
    "RGBA tiff": (
        lambda: Image.fromarray(np.dstack([COLOURS, ALPHA])),
        "tiff",
        {},
        on(rgb(COLOURS), ALPHA, WHITE),
        0.005,
    ),
    "CMYK tiff": (
        lambda: Image.frombytes("CMYK", (8, 8), np.dstack([COLOURS, np.zeros_like(RAMP)]).tobytes()),
        "tiff",
        {},
        rgb(255 - COLOURS),
        0.005,
    ),
    "I;16": (lambda: Image.fromarray(DEEP), "png", {}, np.repeat(DEEP[None] / 65535, 3, axis=0), 1e-6),
    "I;16 tiff": (lambda: Image.fromarray(DEEP), "tiff", {}, np.repeat(DEEP[None] / 65535, 3, axis=0), 1e-6),
    "I;16B tiff": (
        lambda: Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()),
        "tiff",
        {},
        np.repeat(DEEP[None] / 65535, 3, axis=0),
        1e-6,
    ),
    "16 bits ppm": (
        lambda: b"P5 8 8 65535\n" + DEEP.astype(">u2").tobytes(),
        "pgm",
        {},
        np.repeat(DEEP[None] / 65535, 3, axis=0),
        1e-6,
    ),
    "4 bits with a transparent grey": (
        lambda: png(4, 0, packed(FOUR, 4), struct.pack(">H", 3)),
        "png",
        {},
        np.repeat(np.where(FOUR == 3, 1, FOUR / 15)[None], 3, axis=0),
        0.005,
    ),
    "16 bits with a transparent colour": (
        lambda: png(
            16,
            2,
            np.repeat(DEEP[:, :, None], 3, axis=2).astype(">u2").tobytes(),
            struct.pack(">3H", *[int(DEEP[2, 3])] * 3),
        ),
        "png",
        {},
        np.repeat(np.where(DEEP[2, 3] >> 8 == DEEP >> 8, 1, DEEP / 65535)[None], 3, axis=0),
        0.005,
    ),
    "12 bits tiff": (
        lambda: tiff(packed(DEEP >> 4, 12), 12, 1),
        "tiff",
        {},
        np.repeat((DEEP >> 4)[None] / 4095, 3, axis=0),
        1e-6,
    ),
    "16 bits tiff, 0 is white": (
        lambda: tiff(DEEP.astype("<u2").tobytes(), 16, 0),
        "tiff",
        {},
        1 - np.repeat(DEEP[None] / 65535, 3, axis=0),
        1e-6,
    ),
    "CMYK jpeg": (
        lambda: Image.new("CMYK", (8, 8), (200, 40, 90, 0)),
        "jpg",
        {"quality": 100},
        np.broadcast_to(np.array([55, 215, 165]).reshape(3, 1, 1) / 255, (3, 8, 8)),
        0.02,
    ),
}


def packed(values, bits):
    """Rows of 8 numbers, the most significant bit first."""
    every = [(int(value) >> bit) & 1 for value in values.flatten() for bit in reversed(range(bits))]
    return np.packbits(np.array(every, np.uint8)).tobytes()


def png(bits, colour, rows, transparent):
    """A file of 8x8 pixels, byte by byte, as Pillow writes none."""
    step = len(rows) // 8
    raw = b"".join(b"\0" + rows[start : start + step] for start in range(0, len(rows), step))
    found = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0)
    for name, content in ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")):
        found += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return found


def tiff(rows, bits, photometric):
    """Likewise, in one strip."""
    tags = [
        (256, 8),
        (257, 8),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, 8),
        (279, len(rows)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(rows)) + rows + struct.pack("<H", len(tags)) + entries + bytes(4)


def write(folder, name):
    make, ending, options, _, _ = CASES[name]
    path, made = folder / f"{name.replace(' ', '_').replace(';', '')}.{ending}", make()
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        made.save(path, **options)
    return path


@pytest.mark.parametrize("name", CASES)
def test_every_mode_means_what_a_viewer_shows(name, tmp_path):
    *_, expected, tolerance = CASES[name]
    found = read_picture(write(tmp_path, name), 3)
    found = found.double().numpy() / (255 if found.dtype == torch.uint8 else 1)
    assert np.abs(found - expected).max() <= tolerance
    if is_grey(write(tmp_path, name)):
        one = read_picture(write(tmp_path, name), 1).double().numpy()
        assert np.abs(one / (255 if one.max() > 1 else 1) - expected[:1]).max() <= max(tolerance, 1e-9)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_whose_range_is_not_known_are_refused_by_name(mode, tmp_path):
    Image.new(mode, (8, 8)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=f"a.tiff' has pixels of the mode {mode}, whose range is not known"):
        read_picture(tmp_path / "a.tiff", 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_are_upright(orientation, tmp_path):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :4] = 255  # the upper left corner is bright
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_picture(tmp_path / "a.png", 3), torch.from_numpy(upright).permute(2, 0, 1))


def test_the_background_is_an_option(tmp_path):
    path = write(tmp_path, "RGBA")
    found = read_picture(path, 3, "blue").double().numpy() / 255
    assert np.abs(found - on(rgb(COLOURS), ALPHA, BLUE)).max() < 0.005
    with pytest.raises(InputError, match="name such as white, or #rrggbb, got 'whit'"):
        ImageFolder(str(tmp_path), background="whit")


def tree(root, files):
    for name, image in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return root


def test_shapes_that_only_transparency_draws_are_told_apart(tmp_path):
    """In a folder of training images, on disk and in memory, and in a folder that is evaluated."""
    shapes = {}
    for name in ("disc", "square"):
        y, x = np.mgrid[:16, :16] - 7.5
        inside = (abs(y) < 4) & (abs(x) < 4) if name == "square" else y**2 + x**2 < 30
        pixels = np.full((16, 16, 4), (255, 200, 0, 0), np.uint8)  # the colour is stored everywhere
        pixels[inside, 3] = 255
        shapes |= {f"{name}/{number}.png": Image.fromarray(pixels) for number in range(5)}
    root = str(tree(tmp_path, shapes))
    found = []
    for in_memory in (True, False):
        data = ImageFolder(root, in_memory=in_memory)
        data.setup()
        found.append(torch.cat([data.real.take(data.real.rows[label][:1]) for label in (0, 1)]))
    assert torch.equal(*found)
    assert not torch.equal(*found[0])
    (synthetic,) = load_synthetic(root, (0.0,) * 3, (1.0,) * 3)
    assert not torch.equal(synthetic.images[0], synthetic.images[5])
    torch.testing.assert_close(synthetic.images[0], data.denormalize(found[0][:1])[0])


def test_hidden_folders_and_files_are_no_data(tmp_path):
    names = ("a", "b", ".ipynb_checkpoints", "a/.ipynb_checkpoints", "__MACOSX", "b/__MACOSX")
    files = {
        f"{name}/{number}.png": Image.new("RGB", (8, 8), (50 * number, 100, 0)) for name in names for number in range(5)
    }
    files["a/.hidden.png"] = Image.new("RGB", (9, 9))
    (tmp_path / ".git").mkdir()
    data = ImageFolder(str(tree(tmp_path, files)))
    data.setup()
    assert data.class_names == ("a", "b")
    assert data.real.counts() == [4, 4]
    assert len(data.test_labels) == 2


def test_images_are_grey_only_where_all_files_are(tmp_path):
    files = {}
    for name, colour in (("green", (0, 130, 0)), ("red", (255, 0, 0))):
        files |= {f"{name}/{number}.png": Image.new("RGB", (8, 8), colour) for number in range(5)}
    files["green/0.png"] = Image.new("L", (8, 8), 90)
    data = ImageFolder(str(tree(tmp_path / "mixed", files)))
    data.setup()
    assert data.channels == 3
    greys = {f"{name}/{number}.png": Image.new("L", (8, 8), 9 * number) for name in "ab" for number in range(5)}
    greys["a/5.png"] = Image.fromarray(DEEP)
    data = ImageFolder(str(tree(tmp_path / "grey", greys)))
    data.setup()
    assert data.channels == 1


def test_a_grey_train_folder_leaves_a_coloured_test_folder_its_colours(tmp_path):
    for split, mode in (("training", "L"), ("validation", "RGB")):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new(mode, (8, 8)).save(tmp_path / split / name / f"{number}.png")
    data = ImageFolder(str(tmp_path))
    data.setup()
    assert (data.channels, data.num_classes, len(data.test_labels)) == (3, 2, 6)


def test_animations_count_by_their_first_picture(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(
                tmp_path / name / f"{number}.{'gif' if number else 'png'}"
            )
    data = ImageFolder(str(tmp_path))
    data.setup()
    assert sum(data.real.counts()) + len(data.test_labels) == 10


def test_a_class_without_test_images_is_named(tmp_path, caplog):
    for name, count in (("many", 60), ("few", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    ImageFolder(str(tmp_path)).setup()
    assert "has no test image of class 0 (few)" in caplog.text


def test_one_number_is_a_square_size(tmp_path):
    files = {f"{name}/{number}.png": Image.new("L", (5 + number, 9)) for name in "ab" for number in range(5)}
    data = ImageFolder(str(tree(tmp_path, files)), image_size=7)
    data.setup()
    assert data.image_size == (7, 7)


def test_whatever_pillow_refuses_is_named_with_its_file(tmp_path):
    tree(tmp_path, {f"{name}/{number}.png": Image.new("RGB", (8, 8)) for name in "ab" for number in range(5)})
    info = PngInfo()
    info.add_text("prompt", "x" * 2**21, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a/3.png", pnginfo=info)
    with pytest.raises(InputError, match=r"a/3\.png' is no image that can be read \(Decompressed data too large"):
        ImageFolder(str(tmp_path)).setup()
    whole = (tmp_path / "a/2.png").read_bytes()
    (tmp_path / "a/3.png").write_bytes(whole[:16] + (20000).to_bytes(4, "big") * 2 + whole[24:])
    with pytest.raises(InputError, match=r"a/3\.png' is no image that can be read"):
        ImageFolder(str(tmp_path)).setup()
