"""What is fed: each reader of strangers' files, the errors that are its right answer, what must hold of what it
accepts, and small files that it reads, from which damaged ones are made."""

import contextlib
import io
import json
import os
import random
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.engine import TOKENS, mutated
from fuzz.names import NAMES

MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


class Target:
    """One reader.

    Args:
        name: of NAMES.
        run: what is done with an input; returns whether it was accepted.
        seeds: files that are right, or nearly.
        rightly: errors that are a clear answer, each one sentence that names the file.
        inputs: how many are wanted.
        mutate: how a damaged input is made; None: `mutated`, with `tokens` beside the usual ones.
        longest: bytes, for atheris.
        draw: feeds as many as it is told to, by a seed, where inputs are not made of seeds.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[bytes], bool],
        seeds: Sequence[bytes],
        rightly: tuple[type[BaseException], ...],
        inputs: int = 100_000,
        mutate: Callable[[random.Random, Sequence[bytes]], bytes] | None = None,
        tokens: Sequence[bytes] = (),
        longest: int = 4096,
        draw: Callable[[Callable[[bytes], None], int, int], None] | None = None,
    ) -> None:
        self.name, self.run, self.seeds, self.rightly, self.inputs = name, run, seeds, rightly, inputs
        every = (*TOKENS, *tokens, *tokens)
        self.mutate = mutate or (lambda rng, seeds: mutated(rng, seeds, every))
        self.longest, self.draw = longest, draw


def place(name: str) -> Path:
    """A folder of this process's own, in memory where that can be."""
    return Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=MEMORY))


def holds(what: bool, said: str) -> None:
    """Raises AssertionError, which is no target's right answer."""
    if not what:
        raise AssertionError(said)


# ---------------------------------------------------------------- text


def tsv() -> Target:
    """`read_tsv` and `read_rows`: each line is a row, a bad row that is listed, or blank; what is written is read
    again."""
    from src.data.tsv import TsvError, read_rows, read_tsv, write_skipped

    folder = place("tsv")
    file, again, skipped = folder / "a.tsv", folder / "b.tsv", folder / "skipped.tsv"

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        rows, bad = read_rows(file)  # raises what read_tsv raises
        lines = data.splitlines()
        blank = sum(not line.decode("utf-8", "replace").removeprefix("\ufeff").strip() for line in lines)
        holds(len(rows) + len(bad) + blank == len(lines), f"{len(lines)} lines: {len(rows)}, {len(bad)}, {blank} blank")
        table = read_tsv(file, folder, on_bad_row="skip", verify="none", progress=False)
        found = [
            (image, text, tag)
            for image, texts, tags in zip(table.images, table.captions, table.tags, strict=True)
            for text, tag in zip(texts, tags, strict=True)
        ]
        holds(sorted(found) == sorted((image, text, tag) for _, image, text, tag in rows), "rows were lost")
        holds(len(table.skipped) == len(bad), "bad rows were lost")
        for _, image, _, _ in rows:
            inside = os.path.normpath(os.path.join("/root", image))
            holds(inside.startswith("/root/") and not os.path.isabs(image), f"{image!r} leaves the root")
        again.write_text("".join(f"{a}\t{b}\t{c}\n" for _, a, b, c in rows), encoding="utf-8", newline="\n")
        second, lost = read_rows(again)
        holds(
            not lost and [row[1:] for row in second] == [row[1:] for row in rows], "what was written is read otherwise"
        )
        write_skipped(skipped, bad)
        holds(skipped.read_bytes().count(b"\n") == len(bad), "a bad row takes more than its line")
        return True

    seeds = [
        b"a.jpg\ta dog runs\nb.jpg\ttwo dogs\tdomain=news\n",
        "\ufeffa.jpg\t一只狗。\r\nx/b.jpg\t“two”, dogs\tzh\r\n\r\n".encode(),
        b'img_path\tcaption\n"a.jpg","a dog"\na.jpg\\ta dog\n../b.jpg\tout\n/etc/passwd\tabs\n',
        "a.jpg\t狗\n".encode("utf-16"),
        "a.jpg\t狗在跑\n".encode("gb18030"),
        "a.jpg\tcaf\xe9\nb.jpg\tna\xefve\n".encode("latin-1"),
        "a.jpg\tone\u2028two\x0bthree\x85\x1c\ra.jpg\t\n\t\n \ta\nhttp://x/y.jpg\ta\n".encode(),
    ]
    return Target("tsv", run, seeds, (TsvError,), tokens=(b"a.jpg\t", b"\xe2\x80\xa8", b"\xc2\x85", b"C:\\", b"://"))


def captions() -> Target:
    """The tokenizers: what has letters, digits or Chinese is not nothing, joining and dividing again changes nothing,
    and no token has white space; control tags, too."""
    import re

    from src.data.control import ControlError, tag_tokens
    from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer, MixedTokenizer, RJiebaTokenizer
    from src.data.vocabulary import UNK, Vocabulary

    kinds: list[Any] = [EnglishTokenizer(), CharacterTokenizer(), MixedTokenizer()]
    with contextlib.suppress(ImportError):
        RJiebaTokenizer().tokens("狗")
        kinds.append(RJiebaTokenizer())
    said = re.compile(r"[a-z0-9\u4e00-\u9fff]", re.IGNORECASE | re.ASCII)
    known = re.compile(r"[A-Za-z0-9\u4e00-\u9fff]")

    def run(data: bytes) -> bool:
        text = data.decode("utf-8", "surrogatepass" if data[:1] == b"\x01" else "replace")
        for each in kinds:
            tokens = each.tokens(text)
            holds(bool(tokens) or not known.search(text), f"{each.name}: all of the caption is lost")
            holds(
                all(token and not re.search(r"\s", token) for token in tokens), f"{each.name}: an empty or split token"
            )
            joined = each.join(tokens)
            if each.name != "rjieba":
                holds(each.tokens(joined) == tokens, f"{each.name}: {tokens} is {each.tokens(joined)} when joined")
            if tokens:
                words = Vocabulary.build([["a"], tokens], min_count=1)
                ids = words.encode(tokens)
                kept = [token for token in tokens if words.index.get(token, UNK) != UNK]
                holds(words.decode(ids[1:]) == kept, f"{each.name}: encoded and decoded is not the same")
        with contextlib.suppress(ControlError):
            holds(all(token.startswith("<") and token.endswith(">") for token in tag_tokens(text)), "a strange tag")
        return bool(said.search(text))

    seeds = [
        b"A man's dog isn't at 5:30 p.m., with $1,000 & t-shirts/jeans (it said \"hi\").",
        "一只狗在草地上奔跑，旁边有2个人。iPhone 12 的 T恤".encode(),
        "ﬁne Ｆｕｌｌ－ｗｉｄｔｈ naïve Straße İstanbul ǅ 𝒜𝓫 ½ Ⅷ が ガ 한국 ไทย العربية".encode(),
        "u.s.a. mr. o'clock rock'n'roll 'tis they're 1/2 3.5. x_y -- 👨‍👩‍👧‍👦".encode(),
        b"domain=news, style=funny zh <eos> <unk> <length=12>",
    ]
    tokens = ("'s", "n't", "’", "\u0301", "ﬃ", "㍿", "ß", "İ", "\u200d", "々", "𠮷", "１", "...", "a.", "-", "_", "'")
    return Target(
        "captions", run, seeds, (UnicodeDecodeError,), tokens=[token.encode() for token in tokens], longest=512
    )


WORDS = {
    "words": ["<pad>", "<bos>", "<eos>", "<unk>", "a", "狗", "<zh>"],
    "counts": [0, 0, 0, 3, 9, 2, 4],
    "controls": ["<zh>"],
}


def vocabulary() -> Target:
    """`Vocabulary.load`: what is accepted is saved and loaded as it was, and its words are encoded and decoded."""
    from src.data.vocabulary import Vocabulary

    folder = place("vocabulary")
    file, again = folder / "vocabulary.json", folder / "again.json"

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        found = Vocabulary.load(file)
        found.save(again)
        second = Vocabulary.load(again)
        holds(second.to_dict() == found.to_dict(), "saved and loaded is not the same")
        words = list(found.index)
        holds(found.decode(found.encode(words)) == words, "encoded and decoded is not the same")
        found.summary()
        return True

    seeds = [json.dumps(WORDS).encode(), json.dumps(WORDS, ensure_ascii=False, indent=1).encode()]
    seeds.append(b'{"words": ["<pad>", "<bos>", "<eos>", "<unk>", "a"], "counts": [0, 0, 0, 0, 1]}')
    return Target(
        "vocabulary", run, seeds, (ValueError,), tokens=(b'"<pad>"', b'"controls"', b"1.5", b"true", b'"\\u0000"')
    )


COCO = {
    "images": [{"id": 1, "file_name": "COCO_val2014_000000000042.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 1, "id": 7, "caption": "A dog."}, {"image_id": 2, "id": 8, "caption": " two\tdogs\n"}],
}
KARPATHY = {
    "images": [
        {"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "A dog."}]},
        {"filename": "b.jpg", "split": "restval", "sentences": [{"raw": "x"}, {"raw": "y"}]},
    ]
}


def importer() -> Target:
    """COCO's and Karpathy's JSON and Flickr's texts, as far as the tables: every caption is in one, or counted as left
    out."""
    from src.data.tsv import read_rows
    from src.prepare import coco, flickr_texts, importer, karpathy

    folder = place("importer")
    pictures, out = folder / "in", folder / "out"
    pictures.mkdir()
    for name in ("COCO_val2014_000000000042.jpg", "a.jpg", "b.jpg"):
        (pictures / name).write_bytes(b"x")
    file = folder / "captions.json"
    below = importer.Folder(pictures)
    wanted = importer.Wanted(("the images",), "somewhere")

    def run(data: bytes) -> bool:
        file.write_bytes(data[1:])
        kind = data[:1]
        splits: dict[str, Any]
        if kind == b"c":
            splits = {"train": coco.read_annotations(file, "val2014")}
        elif kind == b"k":
            splits = karpathy.read_splits(file)
            splits["train"] |= splits.pop("restval")
        else:
            splits = {"train": flickr_texts.read_captions(file).captions}
        texts = [text for part in splits.values() for group in part.values() for text in group]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            importer.publish(
                importer.DataSet("COCO", (file,), splits, wanted), below, out, allow_missing=True, overwrite=True
            )
        rows = 0
        for table in out.glob("*.tsv"):
            found, bad = read_rows(table)
            holds(not bad, f"a bad row was written: {bad[:1]}")
            rows += len(found)
            table.unlink()
        holds(rows <= len(texts), "more rows than captions")
        if rows < len(texts):
            holds("left out" in said.getvalue(), f"{len(texts) - rows} captions were lost without a word")
        return True

    seeds = [b"c" + json.dumps(COCO).encode(), b"k" + json.dumps(KARPATHY).encode()]
    seeds += [b"f" + text for text in (b"a.jpg#0\tA dog .\nb.jpg#1\tTwo\n", b'image,caption\na.jpg,"A dog, x"\n')]
    seeds += [b"fimage_name| comment_number| comment\na.jpg| 0| A dog\n", "fa.jpg#zhb#0 一只狗\n".encode()]
    return Target(
        "importer", run, seeds, (ValueError, FileNotFoundError), tokens=(b'"file_name"', b'"a.jpg"', b"../", b"#0")
    )


def predictions() -> Target:
    """References and predictions, TSV and JSON: all captions of what is accepted are there."""
    from src.data.tsv import TsvError
    from src.predictions import PredictionsError, of_images, read_predictions, read_references

    folder = place("predictions")
    known = of_images({"val2014/COCO_val2014_000000000042.jpg": ["a dog"], "b.jpg": ["x", "y"]}, folder)

    def run(data: bytes) -> bool:
        file = folder / ("p.json" if data[:1] in b"rp" else "p.tsv")
        file.write_bytes(data[1:])
        if data[:1] in b"rR":
            found = read_references(file)
            holds(
                all(group and all(text.strip() for text in group) for group in found.captions.values()), "an empty one"
            )
            for image in found.captions:
                holds(found.find(image) == image, f"{image!r} is not found by its own name")
        else:
            captions = read_predictions(file, known)
            holds(captions.keys() == known.captions.keys(), "not the images of the references")
            holds(all(len(group) == 1 and group[0].strip() for group in captions.values()), "not one caption each")
        return True

    results = [{"image_id": 42, "caption": "a dog"}, {"image_id": "b", "caption": "x"}]
    seeds = [b"r" + json.dumps(COCO).encode(), b"p" + json.dumps(results).encode(), b"Ra.jpg\tx\na.jpg\ty\n"]
    seeds.append(b"Pb.jpg\tx\nCOCO_val2014_000000000042.jpg\ty\n")
    return Target(
        "predictions", run, seeds, (PredictionsError, TsvError), tokens=(b'"image_id"', b'"caption"', b"b.jpg")
    )


def vectors() -> Target:
    """Word vectors, text and binary, plain and packed: all that are read are finite and as wide as was said."""
    import gzip

    from src.embeddings.vectors import VectorsError, open_vectors

    folder = place("vectors")
    names = {b"t": "v.txt", b"b": "v.bin", b"z": "v.txt.gz", b"y": "v.bin.gz"}

    def run(data: bytes) -> bool:
        file = folder / names.get(data[:1], "v.vec")
        file.write_bytes(data[1:])
        with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
            source = open_vectors(str(file))
            found = source.read({"a", "dog", "狗", "x y", ""})
        holds(
            all(row.shape == (source.width,) and np.isfinite(row).all() for row in found.values()), "a strange vector"
        )
        return bool(found)

    text = "a 1 2 3\ndog 0.5 -1e-3 7\n狗 1 1 1\nx y 3 3 3\n".encode()
    binary = b"2 3\n" + b"".join(word + b" " + struct.pack("<3f", 1, 2, 3) + b"\n" for word in (b"a", b"dog"))
    seeds = [b"t" + text, b"t4 3\n" + text, b"b" + binary, b"z" + gzip.compress(text), b"y" + gzip.compress(binary)]
    return Target("vectors", run, seeds, (VectorsError,), tokens=(b"1e400", b"1e39", b"inf", b"999999999 999999999\n"))


MANIFEST = {
    "shards": [{"name": "train-000000.tar", "images": 2, "bytes": 2048, "sha256": "0" * 64}],
    "sha256": {"captions.tsv": "0" * 64, "index.npy": "0" * 64},
    "features": None,
    "packed": "0" * 16,
}


def manifest() -> Target:
    """A manifest of shards: what it names lies below it."""
    from src.data.shards import Manifest, ShardError, Shards

    folder = place("manifest")
    file = folder / "manifest.json"

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        found = Manifest.read(file)
        holds(set(found.sha256) <= {"captions.tsv", "index.npy"}, f"{set(found.sha256)}: other files than are fetched")
        total = int(found.first[-1])
        shards = Shards(str(folder), found, np.zeros((min(total, 10), 2), np.int64), folder / "cache")
        for number in range(len(found.shards)):
            path = os.path.normpath(shards.path(number))
            holds(path.startswith(f"{folder}/"), f"{path} is not below the manifest's folder")
        shards.digest()
        shards.missing(range(len(found.shards)))
        return True

    other = {**MANIFEST, "features": {"of": {}, "shape": [4, 8], "dtype": "float16"}}
    seeds = [json.dumps(MANIFEST).encode(), json.dumps(other).encode()]
    tokens = (b"pipe:id", b"/etc/passwd", b"../../x", b"http://x/", b"gs://'; id;'", b'"dtype": "O"')
    return Target("manifest", run, seeds, (ShardError,), tokens=tokens)


def calibration() -> Target:
    """A calibration: confidences lie in (0, 1)."""
    from src.confidence import Calibration

    folder = place("calibration")
    file = folder / "calibration.json"

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        found = Calibration.load(file)
        holds(all(0 < found(mean) < 1 for mean in (-50.0, -1.0, 0.0)), "a confidence outside (0, 1)")
        return True

    seeds = [json.dumps({"slope": 1.5, "intercept": 2.0, "threshold": 0.7, "pictures": 100}).encode()]
    return Target("calibration", run, seeds, (ValueError,), tokens=(b"1e308", b"-1e308", b"[1]", b'"1"'))


def config() -> Target:
    """A bundle's config.yaml, as it is read and judged before anything is built."""
    from src.bundle import KINDS
    from src.strangers import check_config, read_yaml

    def run(data: bytes) -> bool:
        found = read_yaml(data.decode("utf-8", "replace"))
        if isinstance(found, dict):
            check_config({part: found[part] for part in found if part in KINDS}, KINDS)
        return isinstance(found, dict)

    seeds = [(bundle_folder() / "config.yaml").read_bytes()]
    seeds.append(b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    tokens = (
        b"_target_: src.loggers.Loggers",
        b"_target_: os.system",
        b"weights: /etc/passwd",
        b"checkpoint_path: /etc/passwd",
        b"hidden: 1000000000000",
        b"layers: 1000000",
        b"&a",
        b"*a",
        b"!!bool x",
        b"!!int ''",
        b"!!timestamp x",
        b"<<: *a",
        b"? [a]\n: b",
        b"size: .inf",
        b"size: .nan",
        b"null",
        b"- - - - -",
        b"max_length: 100000000",
    )
    return Target("config", run, seeds, (ValueError,), tokens=tokens)


# ---------------------------------------------------------------- what is written


def rows() -> Target:
    """Every format of `-o`: what is written is read again, entry by entry, whatever names and captions are."""
    from src.captioner import Caption
    from src.rows import FORMATS, Columns, Row, fragment

    def run(data: bytes) -> bool:
        name, _, rest = data.partition(b"|")
        text = rest.decode("utf-8", "replace")
        path = os.fsdecode(name) or "x.jpg"
        caption = Caption(text, text.split(), [-0.5] * len(text.split()), -1.0, confidence=0.5)
        spans = [None, (0.0, float(len(data)) * 1000)]
        for span in spans:
            row = Row(path, [caption], 0.5, span)
            for kind in FORMATS.values():
                if kind.subtitles and span is None:
                    continue
                entries = kind.entries([row, row], Columns(True, True, True))
                whole = "".join(kind.pieces(entries))
                whole.encode()  # it can be written
                if kind.name == "jsonl":
                    found = [json.loads(line) for line in whole.split("\n") if line]
                    holds(len(found) == 2 and found[0]["caption"] == text, "JSON lines lose something")
                elif kind.name == "json":
                    found = json.loads(whole)
                    key = "img_path" if span is None else "video"
                    holds(len(found) == 2 and found[0][key] == path, "JSON loses something")
                elif kind.name == "tsv" and not set("\t\n\r") & set(text + path):
                    holds(whole.count("\n") == 2, "TSV has other lines than rows")
                    holds(fragment(row).encode(errors="backslashreplace").decode() in whole, "the name is lost")
        return True

    seeds = [b"a.jpg|a dog runs", "图.jpg|一只狗".encode(), b"\xff\xfe.jpg|=1+1", b"x.mp4|--> 00:00\n\n2"]
    return Target("rows", run, seeds, (), tokens=(b"|", b"-->", b"=cmd()", b"WEBVTT"))


# ---------------------------------------------------------------- pictures and arrays


def pictures_of_all_kinds() -> list[bytes]:
    """A small file of every format and mode that Pillow writes, turned, animated, progressive, transparent; and what is
    none."""
    from PIL import Image

    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    found = []

    def add(image: Image.Image, kind: str, **options: Any) -> None:
        buffer = io.BytesIO()
        with contextlib.suppress(OSError, KeyError, ValueError):
            image.save(buffer, kind, **options)
            found.append(buffer.getvalue())

    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 50
    exif[0x8769] = {0x9286: b"ASCII\0\0\0comment"}
    for kind in (
        "JPEG",
        "PNG",
        "GIF",
        "WEBP",
        "BMP",
        "TIFF",
        "PPM",
        "ICO",
        "AVIF",
        "TGA",
        "PCX",
        "SGI",
        "DDS",
        "JPEG2000",
        "IM",
        "MSP",
        "ICNS",
        "QOI",
        "MPO",
        "SPIDER",
        "XBM",
        "BLP",
    ):
        for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK", "LA", "I;16", "I", "F"):
            with contextlib.suppress(ValueError):
                add(colour.convert("I") if mode.startswith("I") else colour.convert(mode), kind)
    add(colour, "JPEG", exif=exif, quality=30)
    add(colour, "JPEG", progressive=True)
    add(colour, "PNG", exif=exif)
    add(colour, "WEBP", exif=exif, lossless=True)
    add(colour, "TIFF", compression="tiff_lzw")
    add(colour, "TIFF", compression="tiff_deflate")
    add(colour, "TIFF", compression="jpeg")
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        add(colour, kind, save_all=True, append_images=[colour.rotate(180)] * 2)
    found.append(b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>")
    found.append(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/tmp/x) (w) file\n%%EOF\n")
    found.append(b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><svg>&b;</svg>")
    return found


def images() -> Target:
    """`load_image`: RGB within the limit of pixels, or an ImageError."""
    from src.data.images import ImageError, load_image

    def run(data: bytes) -> bool:
        image = load_image(data[1:], draft=16 if data[:1] > b"\x7f" else None, max_pixels=1_000_000)
        holds(image.mode == "RGB" and image.width * image.height <= 1_000_000, f"{image.mode}, {image.size}")
        return True

    seeds = [b"\0" + data for data in pictures_of_all_kinds()]
    return Target("images", run, seeds, (ImageError,), inputs=30_000, longest=1 << 14)


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    """An array as a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def regions() -> Target:
    """Regions in `.npy`, `.npz` and HDF5: finite, within the limits, or a RegionsError."""
    from src.data.regions import RegionFiles, RegionsError

    folder = place("regions")
    names = {b"y": "a.npy", b"z": "a.npz", b"h": "a.h5"}

    def run(data: bytes) -> bool:
        for name in names.values():
            (folder / name).unlink(missing_ok=True)
        name = names.get(data[:1], "a.npz")
        (folder / name).write_bytes(data[1:])
        files = RegionFiles(folder / name if name.endswith("h5") else folder, 8, 5)
        try:
            found = files.read("a.jpg")
        finally:
            if files._opened is not None:
                files._opened[1].close()
        holds(found.features.shape[1] == 8 and 1 <= len(found.features) <= 5, "another shape")
        holds(
            bool(np.isfinite(found.features).all() and (found.boxes >= 0).all() and (found.boxes <= 1).all()), "range"
        )
        return True

    good, boxes = np.ones((3, 8), np.float32), np.array([[0, 0, 0.5, 1]] * 3, np.float32)
    seeds = [b"y" + npy(good), b"y" + npy(np.ones((2, 2, 8))), b"y" + npy(np.array([{}, []], object), True)]
    seeds += [b"z" + npz(features=good, boxes=boxes), b"z" + npz(x=good, bbox=boxes * 40, image_w=40, image_h=40)]
    seeds += [b"z" + npz(features=np.array([["a"] * 8])), b"z" + npz(features=np.zeros((300, 8)))]
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000, 8), }"
    seeds.append(b"y\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n")
    with contextlib.suppress(ImportError):
        import h5py

        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file["a/features"], file["a/boxes"] = good, boxes
            file["b"] = good
        seeds.append(b"h" + buffer.getvalue())
    tokens = (b"'shape': (", b"'descr': '|O'", b"'<U5'", b"'<c8'", b"'<M8[s]'", b"'|V9'", b"[('a', '<f4')]", b"True")
    return Target("regions", run, seeds, (RegionsError,), inputs=30_000, tokens=tokens)


def detector() -> Target:
    """A bundle's detector of unfamiliar pictures: it gives a share in [0, 1], whatever it is asked."""
    from src.detection import Detector

    folder = place("detector")
    file = folder / "detector.safetensors"
    pooled = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    Detector.fit(pooled, pooled[:3]).save(file)

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        found = Detector.load(file)
        with np.errstate(all="ignore"):
            shares = found(np.ones((2, len(found.mean)), np.float32))
        holds(all(0 <= share <= 1 for share in shares), f"{shares}: no shares")
        return True

    tokens = (
        b'"BF16"',
        b'"F64"',
        b'"I8"',
        b'"F8_E4M3"',
        b"[1000000000000,6]",
        b'"shape":[]',
        b'"shape":[0,6]',
        b"\x00\x7c",
    )
    return Target("detector", run, [file.read_bytes()], (ValueError,), tokens=tokens)


def tar(*members: tuple[str, bytes, Any]) -> bytes:
    """A tar of (name, content, what else is said of it: `type`, `linkname`, `size`, `pax_headers`)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as file:
        for name, content, more in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in (more or {}).items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return buffer.getvalue()


def damaged_tar(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A damaged tar whose headers' sums are right more often than not, so that what is behind them is reached."""
    data = bytearray(mutated(rng, seeds))
    if rng.random() < 0.8:
        for at in range(0, len(data) - 511, 512):
            if data[at + 257 : at + 262] == b"ustar":
                if rng.random() < 0.3:
                    field, width = rng.choice(((0, 100), (124, 12), (156, 1), (157, 100), (345, 155)))
                    value = rng.choice(
                        (
                            b"../../x.jpg",
                            b"/etc/x.txt",
                            b"77777777777\0",
                            b"\x80" + b"\xff" * 11,
                            b"S",
                            b"1",
                            b"2",
                            b"3",
                            b"x",
                            b"g",
                            b"L",
                            b"K",
                            b"5",
                            b"-1",
                        )
                    )
                    data[at + field : at + field + len(value[:width])] = value[:width]
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def shards() -> Target:
    """A stranger's tar: names lie below the root, and what it says of its pictures lies in the file."""
    from src.data.shards import ShardError, read_tar
    from src.data.tsv import kept_path

    folder = place("shards")
    file = folder / "a.tar"

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        found = read_tar(file, "a/")
        for name, texts, (begin, size) in zip(found.names, found.captions, found.places, strict=True):
            holds(kept_path(name) == (name, None), f"{name!r} leaves the root")
            holds(name.isprintable(), f"{name!r}: not printable")
            holds(begin >= 0 and size >= 0 and begin + size <= len(data), f"{begin} + {size} of {len(data)} bytes")
            holds(
                bool(texts) and all("\n" not in text and "\t" not in text for text in texts),
                "captions of several lines",
            )
        return bool(found.names)

    about = json.dumps({"captions": ["a dog", "two"], "tags": ["en"], "image": "x/a.jpg"}).encode()
    seeds = [
        tar(("a.jpg", b"\xff\xd8", None), ("a.json", about, None)),
        tar(("d/b.png", b"\x89PNG", None), ("d/b.txt", "一只狗\n两只".encode(), None), ("d/b.cls", b"1", None)),
        tar(
            ("../../c.jpg", b"x", None),
            ("../../c.txt", b"out", None),
            ("/etc/d.jpg", b"y", None),
            ("/etc/d.txt", b"abs", None),
        ),
        tar(("l.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), ("l.txt", b"link", None)),
        tar(("h.jpg", b"", {"type": tarfile.LNKTYPE, "linkname": "a.jpg"}), ("h.txt", b"link", None)),
        tar(("n.jpg", b"", {"type": tarfile.CHRTYPE}), ("n.txt", b"device", None)),
        tar(("p.jpg", b"x", {"pax_headers": {"path": "../p.jpg", "size": "9999999"}}), ("p.txt", b"pax", None)),
        tar(("a.jpg", b"1", None), ("a.jpg", b"2", None), ("a.txt", b"twice", None), ("A.TXT", b"x", None)),
        sparse(1 << 40),
    ]
    return Target("shards", run, seeds, (ShardError,), mutate=damaged_tar)


def sparse(size: int) -> bytes:
    """A tar whose caption is a sparse file of so many bytes, none of which is there."""
    header = bytearray(512)
    header[:6], header[100:108], header[108:124] = b"s.txt\0", b"0000644\0", b"0000000\0" * 2
    header[124:136], header[136:148], header[156:157] = b"00000000000\0", b"00000000000\0", b"S"
    header[257:265] = b"ustar  \0"
    header[386:398], header[398:410] = b"00000000000\0", b"00000000000\0"
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar(("s.jpg", b"x", None))


def index() -> Target:
    """A search index's folder: what is accepted can be asked, the rest is an IndexFault."""
    from src.segments import IndexFault, Row, new_manifest, read_state, write_manifest, write_segment

    folder = place("index")
    rows = [Row(f"/x/{name}.jpg", 10, 20, f"a {name}\n一只") for name in ("dog", "cat", "bird")]
    files = write_segment(folder / "segment-0", rows, np.eye(3, 4, dtype=np.float32))
    entry = {"name": "segment-0", "files": files, "removed": None, "rows": 3}
    write_manifest(folder, {**new_manifest({"digest": "x", "size": 4}, ["en"]), "next": 1, "segments": [entry]})
    names = ["manifest.json", *(f"segment-0/{name}" for name in sorted(files))]
    whole = {name: (folder / name).read_bytes() for name in names}

    def run(data: bytes) -> bool:
        name = names[data[0] % len(names)] if data else names[0]
        (folder / name).write_bytes(data[1:])
        try:
            state = read_state(folder)
            for segment in state.segments:
                for number in range(len(segment)):
                    segment.row(number)
                segment.nearest(np.ones(segment.vectors.shape[1], np.float32), 2, np.ones(len(segment), bool), 4)
                segment.below("/x")
            return True
        finally:
            (folder / name).write_bytes(whole[name])

    seeds = [bytes([number]) + whole[name] for number, name in enumerate(names)]
    return Target("index", run, seeds, (IndexFault,), inputs=10_000)


# ---------------------------------------------------------------- captioners


def bundle_folder() -> Path:
    """A tiny bundle, made once."""
    global _bundle
    if _bundle is None:
        import torch

        from src.bundle import Bundle, bundle_config, save_bundle
        from src.confidence import Calibration
        from src.data.vocabulary import Vocabulary
        from src.model import build

        torch.manual_seed(0)
        words = Vocabulary.build([["a", "dog"], ["a", "cat", "on"]], min_count=1)
        decoder = {
            "_target_": "src.decoders.AttentionLSTMDecoder",
            "hidden": 6,
            "layers": 1,
            "dropout": 0.1,
            "tied": False,
        }
        own = {
            "transform": {"_target_": "src.data.transforms.Preprocess", "size": 16, "fit": "squash", "augment": None},
            "tokenizer": {"_target_": "src.data.tokenizer.EnglishTokenizer"},
            "encoder": {
                "_target_": "src.encoders.Encoder",
                "backbone": {"_target_": "src.encoders.CNN", "channels": [4, 4], "weights": "auto"},
                "width": 6,
                "frozen": False,
            },
            "embedding": {"_target_": "src.embeddings.LearnedEmbedding", "size": 5},
            "attention": {"_target_": "src.attention.AdditiveAttention", "width": 4},
            "decoder": decoder,
            "generation": {"_target_": "src.generation.BeamSearch", "beam_size": 2, "max_length": 4},
        }
        found = bundle_config(own, {"encoder_weights": "random"})
        _bundle = place("bundle") / "b"
        save_bundle(_bundle, Bundle(build(found, words).eval(), words, found, Calibration(1.0, 0.0, 0.5, 10)))
    return _bundle


_bundle: Path | None = None


def bundle() -> Target:
    """A stranger's bundle, any of its files damaged: it captions, or is a ValueError that names what is wrong. What
    loads has the config that it says."""
    import torch
    import yaml
    from PIL import Image

    from src.captioner import Captioner

    torch.set_num_threads(1)
    folder = bundle_folder()
    names = ["config.yaml", "config.yaml", "config.yaml", "vocabulary.json", "model.safetensors", "calibration.json"]
    whole = {name: (folder / name).read_bytes() for name in names}
    picture = Image.new("RGB", (20, 20), "red")

    def run(data: bytes) -> bool:
        name = names[data[0] % len(names)] if data else names[0]
        (folder / name).write_bytes(data[1:])
        try:
            captioner = Captioner.load(folder, device_name="cpu", precision_name="32-true")
            (said,) = captioner([picture])
            holds(isinstance(said.text, str), "no caption")
            if name == "config.yaml":
                for part, value in yaml.safe_load(data[1:]).items():
                    holds(captioner.config[part] == value or value != value, f"{part} is another than it says")
            return True
        finally:
            (folder / name).write_bytes(whole[name])

    seeds = [bytes([number]) + whole[name] for number, name in enumerate(names)]
    tokens = (
        b"_target_: src.loggers.CSV",
        b"weights: /etc/passwd",
        b"checkpoint_path: /etc/passwd",
        b"hidden: 1000000000000",
        b"layers: 1000000",
        b"*a",
        b"&a ",
        b"!!bool x",
        b"size: .nan",
        b"max_length: 100000000",
        b'"I8"',
        b'"F64"',
        b'"F16"',
        b'"BOOL"',
        b"[1000000000000,4]",
        b'"shape":[]',
        b"null",
        b"-1",
        b"0",
    )
    return Target("bundle", run, seeds, (ValueError,), inputs=3000, tokens=tokens)


def checkpoint() -> Target:
    """A stranger's `.ckpt`: nothing pickled is executed, and nothing but a BundleError comes of what is none."""
    import pickle

    import torch

    from src.bundle import BundleError, read_saved

    folder = place("checkpoint")
    file, ran = folder / "x.ckpt", folder / "ran"

    class Evil:
        def __init__(self, function: Any, *arguments: Any) -> None:
            self.what = function, arguments

        def __reduce__(self) -> Any:
            return self.what

    saved = read_saved(bundle_folder())
    content = {
        "config": saved.config,
        "vocabulary": saved.vocabulary.to_dict(),
        "state_dict": {f"model.{name}": tensor for name, tensor in saved.state.items()},
    }

    def packed(thing: Any, legacy: bool = False) -> bytes:
        buffer = io.BytesIO()
        torch.save(thing, buffer, _use_new_zipfile_serialization=not legacy)
        return buffer.getvalue()

    def run(data: bytes) -> bool:
        file.write_bytes(data)
        try:
            found = read_saved(file)
            total = sum(tensor.numel() * tensor.element_size() for tensor in found.state.values())
            holds(total <= 4 * len(data) + 4096, f"{total} bytes of tensors in {len(data)} of file")
            return True
        finally:
            holds(not ran.exists(), "a pickle was executed")

    touch = Evil(os.system, f"touch {ran}")
    seeds = [packed(content), packed(content, True), packed({**content, "config": touch}), packed(touch, True)]
    seeds += [packed({**content, "x": Evil(bytearray, 1 << 40)}), pickle.dumps(touch), packed({"x": Evil(eval, "1")})]
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    seeds.append(packed({**content, "state_dict": {"model.x": huge}}))
    seeds.append(packed({**content, "x": Evil(torch.FloatStorage, 1 << 36)}))
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(seeds[0])) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(200_000_000) if name.endswith("data/0") else old.read(name))
    seeds.append(bomb.getvalue())

    def damaged(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
        """The pickle in the zip is damaged, and packed again, more often than the zip itself."""
        data = rng.choice(seeds)
        if not data.startswith(b"PK") or len(data) > 1 << 20 or rng.random() < 0.3:
            return mutated(rng, seeds)
        buffer = io.BytesIO()
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
                for info in old.infolist():
                    if info.file_size > 1 << 20:
                        return mutated(rng, seeds)
                    inner = old.read(info)
                    new.writestr(info.filename, mutated(rng, [inner]) if info.filename.endswith(".pkl") else inner)
        except (zipfile.BadZipFile, KeyError):
            return mutated(rng, seeds)
        return buffer.getvalue()

    return Target("checkpoint", run, seeds, (BundleError,), inputs=10_000, mutate=damaged)


def pictures() -> Target:
    """What is named as pictures: patterns, folders, names of any bytes; they are files, or a ValueError."""
    from src.pictures import find_pictures

    folder = place("pictures")
    for name in ("a.jpg", "[b].png", "c*.gif"):
        (folder / name).write_bytes(b"x")

    def run(data: bytes) -> bool:
        here = os.getcwd()
        os.chdir(folder)
        try:
            name = os.fsdecode(data.replace(b"**", b"*").replace(b"/", b"_").replace(b"..", b"_")[:255])
            found = find_pictures([name], videos=True)
        finally:
            os.chdir(here)
        holds(all(isinstance(each, Path) for each in found), "an address, though none are wanted")
        return bool(found)

    seeds = [b"a.jpg", b"*", b"[[]b].png", b"c[*].gif", b"http:__x", "图?.jpg".encode(), b"."]
    return Target("pictures", run, seeds, (ValueError,), tokens=(b"[!", b"[a-", b"?", b"*", b"{a,b}", b"~"))


# ---------------------------------------------------------------- the service


def service() -> Target:
    """Every route, with damaged pictures, forms and options."""
    from fuzz import asked

    seeds = asked.seeds()
    for data in seeds:  # the first of each kind imports what it needs
        asked.send(data)
    return Target("service", asked.send, seeds, (), inputs=3000, mutate=asked.damaged)


def schema() -> Target:
    """Every route, by requests that schemathesis draws from the service's own description."""
    from fuzz import asked

    for data in asked.seeds():
        asked.send(data)
    return Target("schema", asked.send, [], (), inputs=3000, draw=asked.drawn)


TARGETS: dict[str, Callable[[], Target]] = {name: getattr(sys.modules[__name__], name) for name in NAMES}
