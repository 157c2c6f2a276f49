"""Known data sets in miniature, laid out as their owners publish them, and what reading them back gives."""

import json
import shlex
from pathlib import Path

from PIL import Image

from src.data.tsv import read_tsv
from src.train import build_data
from tests.test_configs import composed

# Flickr8k: ten images, the last two in no list.
FLICKR8K = [f"{number}000268201_69{number}b08cb0e.jpg" for number in range(10)]
FLICKR8K_LISTS = {"train": FLICKR8K[:4], "val": FLICKR8K[4:6], "test": FLICKR8K[6:8]}
FLICKR30K = [f"10000927{number:02d}.jpg" for number in range(6)] + ["2199200615.jpg"]
FLICKR30K_LISTS = {"train": FLICKR30K[:3], "val": FLICKR30K[3:5] + FLICKR30K[6:], "test": FLICKR30K[5:6]}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (len(path.name) * 7 % 256, 90, 200)).save(path)


def write(path: Path, *lines: str, end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def english(name: str, number: int) -> str:
    return f"Caption {number} of {name[:4]} ."


def chinese(name: str, number: int) -> str:
    return f"第{number}句：{name[:4]}，一只狗在草地上。"


def flickr8k(root: Path) -> Path:
    """Images, English text with its damaged name, the owners' lists, and Flickr8k-CN."""
    for name in FLICKR8K:
        picture(root / "Flicker8k_Dataset" / name)
    rows = [f"{name}#{number}\t{english(name, number)}" for name in FLICKR8K for number in range(5)]
    rows += [f"2258277193_586949ec62.jpg.1#{number}\tpeople waiting for the subway" for number in range(5)]
    write(root / "Flickr8k_text" / "Flickr8k.token.txt", *rows)
    write(root / "Flickr8k_text" / "Flickr8k.lemma.token.txt", "not to be read")
    for split, file in (("train", "train"), ("val", "dev"), ("test", "test")):
        write(root / "Flickr8k_text" / f"Flickr_8k.{file}Images.txt", *FLICKR8K_LISTS[split])
    cn = root / "flickr8kcn" / "data"
    # Sentence 0 of all images comes first, as there.
    rows = [f"{name}#zhc#{number} {chinese(name, number)}" for number in range(5) for name in FLICKR8K]
    write(cn / "flickr8kzhc.caption.txt", *rows)
    rows = [f"{name}#zhb#{number} 机器{chinese(name, number)}" for name in FLICKR8K for number in range(5)]
    write(cn / "flickr8kzhb.caption.txt", *rows)
    rows = [f"{name}#zhm#{number} 翻译{chinese(name, number)}" for name in FLICKR8K[6:8] for number in range(5)]
    write(cn / "flickr8kzhmtest.captions.txt", *rows)
    return root


def flickr30k(root: Path) -> Path:
    """Images, the text, Entities' lists, and Karpathy's file with other splits."""
    for name in FLICKR30K:
        picture(root / "flickr30k-images" / name)
    rows = [f"{name}#{number}\t{english(name, number)}" for name in FLICKR30K for number in range(5)]
    write(root / "results_20130124.token", *rows)
    for split, names in FLICKR30K_LISTS.items():
        write(root / "flickr30k_entities" / f"{split}.txt", *(name.removesuffix(".jpg") for name in names))
    karpathy(root / "dataset_flickr30k.json", {name: "train" if i else "test" for i, name in enumerate(FLICKR30K)})
    return root


def coco(root: Path, year: str = "2017", folder: str | None = None) -> Path:
    """Annotations and images of four training and three validation images, and Karpathy's file."""
    everything = {}
    for split, numbers in (("train", (9, 25, 30, 34)), ("val", (42, 73, 74))):
        prefix = f"COCO_{split}2014_" if year == "2014" else ""
        images = [{"id": n, "file_name": f"{prefix}{n:012d}.jpg", "license": 1} for n in numbers]
        annotations = [
            {"image_id": n, "id": 10 * n + k, "caption": f"A  boat {k} on\nthe sea of {n}. "}
            for k in range(5)
            for n in numbers
        ]
        write(
            root / "annotations" / f"captions_{split}{year}.json",
            json.dumps({"info": {}, "images": images, "annotations": annotations}),
        )
        for image in images:
            picture(root / (folder or f"{split}{year}") / str(image["file_name"]))
        everything |= {f"{split}2014/COCO_{split}2014_{n:012d}.jpg": split for n in numbers}
    last = list(everything)
    everything |= {last[-1]: "restval", last[-2]: "test"}
    karpathy(root / "dataset_coco.json", everything)
    return root


def karpathy(path: Path, splits: dict[str, str]) -> None:
    """His form, of images {name: split}."""
    images = []
    for name, split in splits.items():
        folder, _, file = name.rpartition("/")
        sentences = [{"raw": f"Said {k} of {file}. ", "tokens": []} for k in range(2)]
        images.append(
            {"filename": file, "split": split, "sentences": sentences} | ({"filepath": folder} if folder else {})
        )
    write(path, json.dumps({"dataset": "any", "images": images}), end="")


def read(root: Path, *names: str, folder: Path | None = None) -> dict[str, dict[str, list[str]]]:
    """{table: {image: captions}}, read as training reads them, every image decoded."""
    tables = {name: read_tsv((folder or root) / f"{name}.tsv", root, verify="decode") for name in names}
    assert not any(table.skipped for table in tables.values())
    return {name: dict(zip(table.images, table.captions, strict=True)) for name, table in tables.items()}


def run_next(printed: str, tmp_path: Path) -> dict[str, int]:
    """Load the data that the printed training command names; {split: images}."""
    words = shlex.split(printed.splitlines()[-1])
    assert words[:3] == ["python", "-m", "src.train"]
    config = composed([*words[3:], f"data.cache_dir={tmp_path / 'cache'}", "data.min_count=1"])
    data = build_data(config)
    assert len(data.vocabulary) > 5
    return {split: len(table) for split, table in data.tables.items()}
