"""A picture of a labelled set, with the names of the classes."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SIDE = 640  # pixels of the smaller side at least: images are enlarged, without smoothing
_GAP, _STRIP = 4, 18  # pixels between images, and above a class for its name
_SHAPE = 1.4  # width over height that is aimed at


def labelled_picture(
    images: Sequence[Image.Image], labels: Tensor, class_names: Sequence[str], foot: str = ""
) -> Image.Image:
    """The images, of one size, in a block for each class under its name, the blocks in rows; a line at the foot.

    Labels are int64, ``(n,)``.
    """
    count, shown = len(class_names), list(zip(images, labels.tolist(), strict=True))
    blocks = [[image for image, label in shown if label == number] for number in range(count)]
    most = max(len(block) for block in blocks)
    width, height = images[0].size

    def misfit(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns * most * width / (rows * height) / _SHAPE)) + 3 * (columns * rows / count - 1)

    columns = min(range(1, count + 1), key=misfit)
    rows = math.ceil(count / columns)
    scale = max(1, round(_SIDE / min(columns * most * width, rows * height)))
    width, height = scale * width, scale * height
    block_width, block_height = most * (width + _GAP) + 2 * _GAP, _STRIP + height + _GAP
    bottom = rows * block_height + _GAP
    picture = Image.new("RGB", (columns * block_width, bottom + (_STRIP if foot else 0)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    draw.text((_GAP, bottom), _fitting(draw, foot, picture.width - 2 * _GAP), fill="#444444", font=font)
    for number, (name, block) in enumerate(zip(class_names, blocks, strict=True)):
        left, top = number % columns * block_width + _GAP, number // columns * block_height + _GAP
        draw.text((left, top), _fitting(draw, name, block_width - 2 * _GAP), fill="#444444", font=font)
        for place, image in enumerate(block):
            enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            picture.paste(enlarged, (left + place * (width + _GAP), top + _STRIP - _GAP))
    return picture


def _fitting(draw: ImageDraw.ImageDraw, name: str, width: int) -> str:
    """The name, cut where it is wider than its block; without letters that the font of a picture lacks."""
    name = name.encode("latin-1", "replace").decode("latin-1")
    while len(name) > 1 and draw.textlength(name, font=ImageFont.load_default()) > width:
        name = name[:-1]
    return name
