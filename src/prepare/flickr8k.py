"""Flickr8k in its official splits, in English, or in Chinese with the texts of Flickr8k-CN.

Hodosh, Young and Hockenmaier, "Framing image description as a ranking task", JAIR 47 (2013); Li, Lan, Dong and Liu,
"Adding Chinese captions to images", ICMR 2016.
"""

import argparse

from src.prepare.flickr_texts import read_captions, read_list
from src.prepare.importer import OWNERS, SPLITS, DataSet, Folder, Wanted, add_command, divide

PAGE = OWNERS["Flickr8k"]
CHINESE_PAGE = "https://github.com/li-xirong/flickr8kcn"

IMAGES = Wanted(("Flicker8k_Dataset/",), PAGE)
ENGLISH = Wanted(("Flickr8k.token.txt", "flickr8kenc.caption.txt", "captions.txt"), PAGE)
CHINESE = {
    "written": Wanted(("flickr8kzhc.caption.txt",), CHINESE_PAGE),
    "baidu": Wanted(("flickr8kzhb.caption.txt",), CHINESE_PAGE),
    "google": Wanted(("flickr8kzhg.caption.txt",), CHINESE_PAGE),
    "translated": Wanted(("flickr8kzhmtest.captions.txt", "flickr8kzhmtest.caption.txt"), CHINESE_PAGE),
}
# The official lists, and the same as Flickr8k-CN has them.
LISTS = {
    "train": Wanted(("Flickr_8k.trainImages.txt", "flickr8ktrain.txt"), f"{PAGE} and {CHINESE_PAGE}"),
    "val": Wanted(("Flickr_8k.devImages.txt", "flickr8kval.txt"), f"{PAGE} and {CHINESE_PAGE}"),
    "test": Wanted(("Flickr_8k.testImages.txt", "flickr8ktest.txt"), f"{PAGE} and {CHINESE_PAGE}"),
}

LAYOUT = f"""\
expected below FOLDER, at any depth:
  Flicker8k_Dataset/*.jpg           the images (the name of their folder does not matter)
  Flickr8k.token.txt                the captions; Kaggle's captions.txt (image,caption) will do
  Flickr_8k.trainImages.txt         the official splits: 6,000 images,
  Flickr_8k.devImages.txt           1,000 for validation
  Flickr_8k.testImages.txt          and 1,000; Kaggle's copy lacks these three, Flickr8k-CN has
                                    them as flickr8ktrain.txt, flickr8kval.txt, flickr8ktest.txt
for --language zh, in place of Flickr8k.token.txt, Flickr8k-CN's text (--text):
  flickr8kzhc.caption.txt           written by native speakers
  flickr8kzhb.caption.txt           baidu: the English captions, translated by machine
  flickr8kzhg.caption.txt           google: likewise
  flickr8kzhmtest.captions.txt      translated by people: the test split only
published at
  {PAGE} (a form; the link comes by mail)
  {CHINESE_PAGE}
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `python -m src.prepare flickr8k`."""
    parser = add_command(subparsers, "flickr8k", "Flickr8k, in English or Chinese (Flickr8k-CN)", LAYOUT, read)
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of the captions (%(default)s)")
    parser.add_argument("--text", choices=tuple(CHINESE), help="with --language zh: which captions (written)")


def read(folder: Folder, options: argparse.Namespace) -> DataSet:
    """Flickr8k below a folder. The Chinese tables are train_zh.tsv, train_zh_baidu.tsv …, beside the English.

    Raises FileNotFoundError that names missing texts, and ValueError for texts in another form.
    """
    if options.language == "en" and options.text:
        raise ValueError(f"--text {options.text} is one of the Chinese texts: add --language zh.")
    which = options.text or "written"
    wanted = CHINESE[which] if options.language == "zh" else ENGLISH
    splits = ("test",) if wanted is CHINESE["translated"] else SPLITS
    text, *lists = folder.find(wanted, *(LISTS[split] for split in splits))
    captions, left_out = read_captions(text)
    divided, unlisted = divide(captions, {split: read_list(path) for split, path in zip(splits, lists, strict=True)})
    data = DataSet("Flickr8k", (text, *lists), divided, IMAGES, left_out + unlisted)
    if options.language == "zh":
        data.name = f"Flickr8k-CN ({which})"
        data.suffix = "_zh" if which == "written" else f"_zh_{which}"
        data.overrides = ("tokenizer=character",)
    return data
