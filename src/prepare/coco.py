"""COCO Captions in its official splits: train and val. The test images' captions are not public.

Chen et al., "Microsoft COCO Captions: data collection and evaluation server", arXiv:1504.00325 (2015).
"""

import argparse
from pathlib import Path

from src.prepare.importer import OWNERS, Captions, DataSet, Folder, Wanted, add_command, read_json

PAGE = OWNERS["COCO"]
YEARS = ("2017", "2014")

LAYOUT = f"""\
expected below FOLDER, at any depth:
  annotations/captions_train2017.json, annotations/captions_val2017.json     (or 2014's)
  train2017/*.jpg, val2017/*.jpg    the images (the names of their folders do not matter)
published at
  {PAGE}
There is no test.tsv: the captions of COCO's test images are not public. For a test split that
is part of val, as in most papers, use the command karpathy.
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `python -m src.prepare coco`."""
    parser = add_command(subparsers, "coco", "COCO Captions, 2014 or 2017", LAYOUT, read)
    parser.add_argument("--year", choices=YEARS, help="(2017, or 2014 where only that is there)")


def read(folder: Folder, options: argparse.Namespace) -> DataSet:
    """COCO Captions below a folder.

    Raises FileNotFoundError that names missing annotations, and ValueError for annotations in another form.
    """
    there = (year for year in YEARS if folder.named(f"captions_train{year}.json"))
    year = options.year or next(there, YEARS[0])
    splits = ("train", "val")
    paths = folder.find(*(Wanted((f"captions_{split}{year}.json",), PAGE) for split in splits))
    captions = {split: read_annotations(path, f"{split}{year}") for split, path in zip(splits, paths, strict=True)}
    images = Wanted((f"train{year}/ and val{year}/",), PAGE)
    left_out = ["the test images, whose captions are not public (the command karpathy makes a test split of val)"]
    return DataSet(f"COCO {year}", paths, captions, images, left_out)


def read_annotations(path: Path, folder: str) -> Captions:
    """Captions in COCO's form; image names begin with `folder`. Raises ValueError for another form."""
    data = read_json(path, "images", "annotations")
    try:
        names = {image["id"]: f"{folder}/{image['file_name']}" for image in data["images"]}
        captions: Captions = {name: [] for name in names.values()}
        for annotation in data["annotations"]:
            captions[names[annotation["image_id"]]].append(annotation["caption"].strip())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: {error}: expected images with id and file_name, and annotations with caption and image_id, which "
            f"is an image's id; get the file again."
        ) from None
    return captions
