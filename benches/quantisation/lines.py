"""Lines of text as a text recogniser sees them: black on bright, 48 pixels high, in Pillow's own font at several sizes.

    python lines.py OUT.png [LINES]      a sheet of lines, one below the other: tests/fixtures/text_lines.png

Needs Pillow and numpy.
"""

import random
import sys

import numpy
from PIL import Image, ImageDraw, ImageFont

WORDS = (
    "ship harbour whale captain 1851 storm Nantucket ocean, voyage lantern deck; anchor compass sail Friday "
    "north-west 17:45 invoice total 349.20 street number (new) model quantised ratio 0.98 error percent January "
    "Address: London market price $12 order No. 4471 telephone 020 7946 open closed Monday every answer"
).split()


def line(seed, width=320):
    """One line that fills `width`: array [48, width] of bytes."""
    pick = random.Random(seed)
    font = ImageFont.load_default(pick.choice([24, 27, 30, 33]))
    text = ""
    while font.getlength(f"{text}{'mmmmm'}") < width - 8:
        text = f"{text} {pick.choice(WORDS)}".strip()
    while font.getlength(text) > width - 8:
        text = text[:-1]
    paper = pick.randint(200, 255)
    image = Image.new("L", (width, 48), paper)
    ImageDraw.Draw(image).text((4, 24), text, fill=pick.randint(0, 70), font=font, anchor="lm")
    return numpy.asarray(image)


def normalised(lines):
    """Arrays of bytes as [n, 3, height, width] from -1 to 1."""
    x = numpy.stack(lines).astype(numpy.float32) / 127.5 - 1
    return numpy.repeat(x[:, None], 3, axis=1)


def page(seed, side=320):
    """Lines at several places of a page: array [side, side] of bytes."""
    pick = random.Random(seed)
    sheet = numpy.full((side, side), 235, numpy.uint8)
    for top in range(pick.randint(0, 12), side - 48, pick.choice([48, 60, 76])):
        begin = pick.randint(0, side // 3)
        part = line(pick.random(), 320)[:, : side - begin]
        sheet[top : top + 48, begin : begin + part.shape[1]] = part
    return sheet


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 36
    sheet = numpy.concatenate([line(seed) for seed in range(count)])
    Image.fromarray(sheet // 16 * 17).quantize(16).save(sys.argv[1], optimize=True)
