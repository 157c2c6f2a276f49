"""Flickr8k, Flickr30k and COCO in Karpathy's splits, in which most papers report.

Karpathy and Fei-Fei, "Deep visual-semantic alignments for generating image descriptions", CVPR 2015.
"""

import argparse
import posixpath
from pathlib import Path

from src.prepare.importer import OWNERS, SPLITS, Captions, DataSet, Folder, Wanted, add_command, many, read_json

PAGE = "https://cs.stanford.edu/people/karpathy/deepimagesent/"
FILES = {
    "Flickr8k": "dataset_flickr8k.json",
    "Flickr30k": "dataset_flickr30k.json",
    "COCO": "dataset_coco.json",
}

LAYOUT = f"""\
expected below FOLDER, at any depth:
  dataset_coco.json (or dataset_flickr8k.json, dataset_flickr30k.json), or elsewhere with --json
  the images: COCO's train2014/ and val2014/ (those of 2017 are found too), or Flickr's
published at
  {PAGE} (caption_datasets.zip)
  and, the images, by the owners: see the commands coco, flickr30k and flickr8k
COCO's test split here is part of val2014, whose captions are public.
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `python -m src.prepare karpathy`."""
    parser = add_command(subparsers, "karpathy", "COCO, Flickr30k or Flickr8k in Karpathy's splits", LAYOUT, read)
    parser.add_argument("--json", type=Path, help="the split's file (the one below FOLDER)")
    parser.add_argument(
        "--restval",
        choices=("train", "drop"),
        default="train",
        help="COCO's validation images that are in neither val nor test (%(default)s)",
    )


def read(folder: Folder, options: argparse.Namespace) -> DataSet:
    """A data set in Karpathy's form.

    Raises FileNotFoundError where its file is missing, and ValueError for one in another form or several of them.
    """
    path = options.json
    if path is None:
        found = [name for name in FILES.values() if folder.named(name)]
        if len(found) > 1:
            raise ValueError(f"{folder.path} holds {' and '.join(found)}: choose one with --json FILE.")
        (path,) = folder.find(Wanted(tuple(found or FILES.values()), PAGE))
    splits = read_splits(path)
    rest, left_out = splits.pop("restval"), []
    if options.restval == "train":
        splits["train"] |= rest
    elif rest:
        left_out = [f"{many(len(rest), 'image')} of restval"]
    name = next((name for name, file in FILES.items() if file == path.name), path.stem)
    images = Wanted(("the images",), OWNERS.get(name, PAGE))
    return DataSet(f"{name} in Karpathy's splits", (path,), splits, images, left_out)


def read_splits(path: Path) -> dict[str, Captions]:
    """{train, val, test, restval: captions of its images}; COCO's image names begin with `train2014/` or `val2014/`.

    Raises ValueError for another form.
    """
    splits: dict[str, Captions] = {split: {} for split in (*SPLITS, "restval")}
    for number, image in enumerate(read_json(path, "images")["images"]):
        try:
            name = posixpath.join(image.get("filepath", ""), image["filename"])
            splits[image["split"]][name] = [sentence["raw"].strip() for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: images[{number}]: {error}: expected filename, sentences[].raw, and split, which is one of "
                f"{', '.join(splits)}; get the file again."
            ) from None
    return splits
