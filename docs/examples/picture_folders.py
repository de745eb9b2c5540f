"""Your own pictures on two devices: each has a folder of its own, with classes that the other may not have.

The folders are made here, of discs, squares and stripes; put your own in their place:

    kitchen/train/<class>/*.png        garden/train/<class>/*.jpg        held_out/test/<class>/*.png

Run it with: python docs/examples/picture_folders.py      (needs pip install 'bitfleet[server,images]')
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bnncore import build, open_dataset
from server.notebook import federate

SIDE = 24


def draw(kind: str, random: np.random.Generator) -> Image.Image:
    """Draw one picture of a class, somewhere and in some colour."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(random.integers(0, 90, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    colour = tuple(random.integers(150, 256, 3).tolist())
    x, y, size = (int(value) for value in (*random.integers(2, 8, 2), random.integers(10, 15)))
    if kind == "disc":
        pen.ellipse((x, y, x + size, y + size), fill=colour)
    elif kind == "square":
        pen.rectangle((x, y, x + size, y + size), fill=colour)
    else:
        for line in range(x % 4, SIDE, 4):
            pen.line((line, 0, line, SIDE), fill=colour, width=2)
    return picture


def fill(folder: Path, split: str, counts: dict[str, int], seed: int) -> None:
    """Put pictures into ``folder/split/<class>/``."""
    random = np.random.default_rng(seed)
    for kind, count in counts.items():
        place = folder / split / kind
        place.mkdir(parents=True)
        for number in range(count):
            draw(kind, random).save(place / f"{number}.png")


def main() -> None:
    """Train one network on the pictures of both."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        fill(root / "kitchen", "train", {"disc": 120, "square": 80}, seed=1)
        fill(root / "garden", "train", {"square": 60, "stripes": 120}, seed=2)
        fill(root / "held_out", "test", {"disc": 40, "square": 40, "stripes": 40}, seed=3)
        shape = (16, 16, 3)
        network = build("cnv", input_shape=shape, classes=3, widths=(16, 32), convs_per_stage=1, dense_widths=(64,))
        with (
            open_dataset("images", root / "kitchen", split="train", image_shape=shape) as kitchen,
            open_dataset("images", root / "garden", split="train", image_shape=shape) as garden,
            open_dataset("images", root / "held_out", split="test", image_shape=shape) as held_out,
        ):
            history = federate(
                datasets=[kitchen, garden],
                evaluation=held_out,
                model=network,
                rounds=6,
                local_steps=30,
                batch_size=20,
                progress=False,
            )
        print(f"classes of both devices: {', '.join(history.job.classes)}")
        print(f"accuracy on all of them: {history.accuracy:.1f} %")
        history.save(root / "model.safetensors")


if __name__ == "__main__":
    main()
