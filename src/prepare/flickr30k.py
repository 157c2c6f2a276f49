"""Flickr30k, in the splits of Flickr30k Entities or in Karpathy's; its owners publish none.

Young, Lai, Hodosh and Hockenmaier, "From image descriptions to visual denotations", TACL 2 (2014); Plummer et al.,
"Flickr30k Entities", ICCV 2015.
"""

import argparse
from pathlib import Path

from src.prepare import karpathy
from src.prepare.flickr_texts import read_captions, read_list
from src.prepare.importer import OWNERS, SPLITS, DataSet, Folder, Wanted, add_command, divide

PAGE = OWNERS["Flickr30k"]
ENTITIES_PAGE = "https://github.com/BryanPlummer/flickr30k_entities"

IMAGES = Wanted(("flickr30k-images/",), PAGE)
CAPTIONS = Wanted(("results_20130124.token", "results.csv", "captions.txt"), PAGE)
LISTS = {split: Wanted((f"{split}.txt",), ENTITIES_PAGE) for split in SPLITS}

LAYOUT = f"""\
expected below FOLDER, at any depth:
  flickr30k-images/*.jpg            the images (the name of their folder does not matter)
  results_20130124.token            the captions; Kaggle's results.csv will do
  train.txt, val.txt, test.txt      Flickr30k Entities' splits: 29,783, 1,000 and 1,000 images;
                                    or Karpathy's, with --karpathy dataset_flickr30k.json
published at
  {PAGE}
  {ENTITIES_PAGE}
  {karpathy.PAGE} (caption_datasets.zip)
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `python -m src.prepare flickr30k`."""
    parser = add_command(subparsers, "flickr30k", "Flickr30k", LAYOUT, read)
    parser.add_argument("--karpathy", type=Path, metavar="JSON", help="his dataset_flickr30k.json, for his splits")


def read(folder: Folder, options: argparse.Namespace) -> DataSet:
    """Flickr30k below a folder.

    Raises FileNotFoundError that names missing texts, and ValueError for texts in another form.
    """
    if options.karpathy:
        (text,) = paths = folder.find(CAPTIONS)
        paths.append(options.karpathy)
        lists = {split: list(images) for split, images in karpathy.read_splits(options.karpathy).items() if images}
    else:
        text, *rest = paths = folder.find(CAPTIONS, *LISTS.values())
        lists = {split: read_list(path) for split, path in zip(LISTS, rest, strict=True)}
    captions, left_out = read_captions(text)
    divided, unlisted = divide(captions, lists)
    return DataSet("Flickr30k", paths, divided, IMAGES, left_out + unlisted)
