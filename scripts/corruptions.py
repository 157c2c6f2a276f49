"""Draw docs/corruptions.png, every kind of damage at severity 3, as docs/robustness.md shows it:
`python -m scripts.corruptions`, from the repository's root. The photograph is scikit-image's `astronaut` (NASA, public
domain)."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from src.corruptions import KINDS, corrupt, generator

TARGET = Path("docs/corruptions.png")
COLUMNS, SIDE, LINE = 8, 104, 13
SEVERITY = 3


def main() -> None:
    """Draw it."""
    photo = Image.fromarray(data.astronaut()).crop((60, 0, 412, 352)).resize((224, 224), Image.Resampling.LANCZOS)
    pixels = np.asarray(photo)
    tiles = {"as it is": pixels}
    tiles |= {kind: corrupt(pixels, kind, SEVERITY, generator(3, "astronaut", kind, SEVERITY)) for kind in KINDS}
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 4) - 4, rows * (SIDE + LINE + 6)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (kind, tile) in enumerate(tiles.items()):
        row, column = divmod(number, COLUMNS)
        x, y = column * (SIDE + 4), row * (SIDE + LINE + 6)
        sheet.paste(Image.fromarray(tile).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + SIDE + 1), kind.replace("_", " "), "#333", font)
    sheet.quantize(96).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
