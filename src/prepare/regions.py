"""A captioner's own view of pictures as `.npz` files for `encoder=precomputed`: its backbone's map, region by region.

What another program should write looks like this: `features` (R, D), `boxes` (R, 4) in pixels, `image_w`, `image_h`.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `python -m src.prepare regions`."""
    text = "regions for encoder=precomputed: what a captioner's backbone says of pictures, a .npz file each"
    parser = subparsers.add_parser("regions", help=text, description=text)
    parser.add_argument("output", type=Path, help="the folder to write to")
    parser.add_argument("pictures", type=Path, help="the folder that they are below, data.root")
    parser.add_argument("--model", required=True, help="a bundle/ directory, a run's folder, or a .ckpt")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the fastest here)")
    parser.set_defaults(run=lambda o: write_regions(o.output, o.pictures, o.model, o.device))


def write_regions(output: Path, root: Path, model: str, device: str | None = None) -> None:
    """Write `output`/a/b.npz for each picture `root`/a/b.*.

    Raises:
        ValueError: no pictures, one that cannot be read, no captioner, or one that reads regions itself.
    """
    import torch  # here: the other commands begin without it

    from src.captioner import Captioner
    from src.encoders.base import grid_boxes
    from src.pictures import find_pictures

    captioner = Captioner.load(model, device_name=device)
    captioner.check_source()
    encoder = captioner.model.encoder
    paths = list(map(Path, find_pictures([str(root)])))
    for path in tqdm(paths, desc="regions", unit="img", disable=None):
        picture = captioner.preprocess.decode(path)
        pixels = captioner.preprocess(picture).unsqueeze(0).to(captioner.device)
        with torch.inference_mode():
            features = encoder.regions(pixels)[0].half().cpu().numpy()
        side = round(len(features) ** 0.5)
        size = np.array(picture.size * 2, np.float32)
        seen = np.array(captioner.preprocess.seen(*picture.size) * 2, np.float32)
        boxes = ((grid_boxes(side, side).numpy() - 0.5) * seen + 0.5 * size).clip(0, size)
        file = output / path.relative_to(root).with_suffix(".npz")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as target:
            np.savez(target, features=features, boxes=boxes, image_w=picture.width, image_h=picture.height)
        os.replace(partial, file)
    print(
        f"{output}: regions of {len(paths)} pictures. Train on them with encoder=precomputed encoder.path="
        f"{output.resolve()} encoder.dimension={features.shape[1]} encoder.max_regions={len(features)}"
    )
