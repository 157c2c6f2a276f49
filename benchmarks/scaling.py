"""What a training costs as it grows: `python -m benchmarks.scaling`.

By the data's size, batch, length of captions, vocabulary, processes, loading processes, and form on the disk. Each part
is measured on its own (`--only`), and kept in a JSON file beside those measured before, so that a call that was stopped
goes on; `--docs` writes tables, plots and the cost model (`benchmarks/costs.py`) into docs/scaling.md from that file.
Wants a quiet machine, 30 GB of disk and half an hour.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from benchmarks import costs
from benchmarks.decoder import CAPTIONS, SETTINGS, Ours, regions_and_tokens
from benchmarks.features import SIZES, make_pictures
from benchmarks.measuring import alternate, machine, peak_mb, use_cores, warn_unless_quiet
from src.charts import Line, line_chart
from src.config import ROOT, precision
from src.data.transforms import Preprocess
from src.files import write_atomically

Rows = list[dict[str, Any]]

# ---------------------------------------------------------------- data


def make_table(folder: Path, rows: int) -> None:
    """A table t.tsv of five captions an image, without a file for each: every digit is a folder that is this folder, so
    that 1/2/3/picture.png is another image than 3/2/1/picture.png, and the same file."""
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    for digit in range(10):
        (folder / str(digit)).symlink_to(".")
    with (folder / "t.tsv").open("w", encoding="utf-8") as file:
        for row in range(rows):
            image = "/".join(f"{row // 5:07d}")
            file.write(f"{image}/picture.png\ta dog number {row % 977} runs over the {row % 1009} th hill\n")


def make_data(folder: Path, images: int, size: tuple[int, int], files: int = 1000) -> None:
    """A data set of JPEGs, five captions each, of which so many differ and the others are names of the same files."""
    (folder / "images").mkdir(parents=True)
    (folder / "files").mkdir()
    made = make_pictures(folder / "files", min(files, images), size)
    rows: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(images + 8):
        name = f"images/{number:07d}.jpg"
        os.link(folder / "files" / made[number % len(made)], folder / name)
        for caption in range(CAPTIONS):
            rows["train" if number < images else "val"].append(
                f"{name}\ta dog number {number % 977} runs over hill {caption} of {number % 1009}"
            )
    for split, lines in rows.items():
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


STARTED = """
import json, multiprocessing, sys, time
from itertools import islice
from pathlib import Path
from src.data.module import CaptionData
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess

def pss(pid):
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if "-" in name and not name.endswith(":"):  # a mapping begins
            counts = ".so" not in rest[-1]
        elif name == "Pss:" and counts:
            total += int(rest[0])
    return total / 1024

folder, workers = Path(sys.argv[1]), int(sys.argv[2])
start = time.perf_counter()
data = CaptionData(folder, Preprocess(8), EnglishTokenizer(), "t.tsv", min_count=1, verify="none", seed=0,
                   cache_dir=folder / "cache", batch_size=64, captions_per_image=5, workers=workers)
data.vocabulary
read = time.perf_counter() - start
loader = data.train_dataloader()
batches = iter(loader)
first, *_ = list(islice(batches, 100))  # which see most pages of any table, whoever loads them
children = [child.pid for child in multiprocessing.active_children()]
total = sum(map(pss, ["self", *children]))
print(json.dumps({"workers": len(children), "read": read, "pss": total, "first": first.references[0]}))
loader._iterator._shutdown_workers()  # for which the end of this process would wait
"""


def started(folder: Path, workers: int) -> dict[str, Any]:
    """A fresh process reads t.tsv of a folder and a hundred batches of it.

    Returns:
        workers: loading processes that there were. read: seconds to the vocabulary. pss: MB of all processes together,
        a page that n share counted 1/n in each, without libraries' code, which other programs share too. first: an
        image's captions.

    Raises:
        RuntimeError: it failed.
    """
    done = _python("-c", STARTED, str(folder), str(workers))
    return json.loads(done.splitlines()[-1])


def _python(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)[:200]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


# ---------------------------------------------------------------- training


SMALL = (
    *("encoder=cnn", "encoder.frozen=true", "encoder.backbone.channels=[16,32]", "encoder.width=64"),
    *("transform.size=32", "embedding.size=64", "attention.width=64", "decoder.hidden=64", "data.batch_size=256"),
)
"""A captioner so small that what is not the captioner shows."""


def trained(folder: Path, run: Path, *overrides: str) -> dict[str, Any]:
    """What a training of one epoch by the real command took.

    Returns:
        seconds: of the whole process. peak: MB that it held at most. captions_per_second, data_wait: medians of the
        second half of what it logged.

    Raises:
        RuntimeError: it failed.
    """
    command = [
        *(sys.executable, "-m", "src.train", "data=tsv", f"data.root={folder}", "data.train=train.tsv"),
        *("data.val=val.tsv", "data.test=null", "data.min_count=1", f"data.cache_dir={folder / 'cache'}"),
        *(f"run_dir={run}", f"hydra.run.dir={run}", "logger=csv", "trainer.max_epochs=1", "evaluate_splits=[]"),
        *("trainer.enable_progress_bar=false", "generation=greedy", "generation.max_length=8"),
        *("trainer.log_every_n_steps=2", *overrides),
    ]
    run.mkdir(parents=True)
    start = time.perf_counter()
    with (run / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(overrides)} failed:\n{(run / 'said.txt').read_text()[-3000:]}")
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        logged = [row for row in csv.DictReader(file) if row.get("train/captions_per_second")]
    later = logged[len(logged) // 2 :]
    return {
        "seconds": seconds,
        "peak": usage.ru_maxrss / 1024,
        **{
            name: statistics.median(float(row[f"train/{name}"]) for row in later)
            for name in ("captions_per_second", "data_wait")
        },
    }


def composed(*overrides: str) -> dict[str, Any]:
    """A training's config, as the command has it."""
    from hydra import compose, initialize_config_dir

    from src.config import CONF, plain

    with initialize_config_dir(CONF, version_base="1.3"):
        return plain(compose("train", overrides=list(overrides)))


# ---------------------------------------------------------------- parts


def tables(folder: Path) -> Rows:
    """Start-up and memory by rows of the table."""
    rows = []
    for count in (10**5, 10**6, 10**7):
        place = folder / str(count)
        make_table(place, count)
        first = started(place, 1)
        again = {workers: started(place, workers) for workers in (1, 2, 4)}
        rows.append(
            {
                "rows": count,
                "file_mb": (place / "t.tsv").stat().st_size / 1e6,
                "first_s": first["read"],
                "again_s": statistics.median(each["read"] for each in again.values()),
                "pss_mb_one_worker": again[1]["pss"],
                "pss_mb_a_further_worker": (again[4]["pss"] - again[1]["pss"]) / 3,
            }
        )
    return rows


def images(folder: Path) -> Rows:
    """A whole training of one epoch by images, five captions each, of a captioner so small that the rest shows."""
    rows = []
    for count in (10**3, 10**4, 10**5):
        place = folder / str(count)
        make_data(place, count, (64, 64))
        first, again = (trained(place, place / run, *SMALL) for run in ("first", "again"))
        rows.append(
            {
                "images": count,
                "first_s": first["seconds"],
                "again_s": again["seconds"],
                "captions_per_second": again["captions_per_second"],
                "data_wait": again["data_wait"],
                "peak_mb": again["peak"],
                "cache_mb": sum(file.stat().st_size for file in (place / "cache").rglob("*.npy")) / 1e6,
            }
        )
    return rows


def stepped(vocabulary: int, batch: int, words: int, repeats: int = 5) -> dict[str, float]:
    """Whole training steps of the captioner as conf/ has it, on cached regions of 49 × 1280."""
    setting = SETTINGS["49x1280"]._replace(vocabulary=vocabulary)
    ours, (regions, tokens) = Ours(setting), regions_and_tokens(setting, batch, CAPTIONS, words)
    run = partial(ours.step, regions, tokens)
    peak = peak_mb(run)
    rate = batch * CAPTIONS / statistics.median(alternate({"": run}, repeats)[""])
    return {
        "captions_per_second": rate,
        "words_per_second": rate * (words + 1),
        "step_mb": peak or 0,
        "parameters": sum(p.numel() for p in ours.model.parameters()),
    }


def _steps(name: str, values: Sequence[int], usual: Mapping[str, int]) -> Rows:
    """Each in a fresh process, so that the peak of memory is its own."""
    rows = []
    for value in values:
        code = f"import json; from benchmarks import scaling; scaling.use_cores({torch.get_num_threads()}); "
        code += f"print(json.dumps(scaling.stepped(**{ {**usual, name: value} })))"
        rows.append({name: value, **json.loads(_python("-c", code).splitlines()[-1])})
    return rows


USUAL = {"vocabulary": 3000, "batch": 64, "words": 12}
"""Words known, images a step, words a caption."""


def batch(folder: Path) -> Rows:
    """A training step by images in it, five captions each."""
    return _steps("batch", (4, 8, 16, 32, 64, 128), USUAL)


def length(folder: Path) -> Rows:
    """A training step by words a caption."""
    return _steps("words", (5, 10, 20, 40), USUAL)


def vocabulary(folder: Path) -> Rows:
    """A training step by words that are known."""
    return _steps("vocabulary", (1000, 3000, 10_000, 30_000, 100_000), USUAL)


def processes(folder: Path) -> Rows:
    """A training with the same batch in one process and in two, by turns."""
    make_data(folder / "data", 1000, SIZES[0])
    ways = {
        "one process, two threads": ["data.batch_size=64"],
        "two processes, one thread each": ["data.batch_size=32", "trainer=ddp_cpu"],
        "one process, one thread": ["data.batch_size=64"],
    }
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(3):
        for way in list(ways) if number % 2 == 0 else reversed(list(ways)):
            with _cores(1 if way == "one process, one thread" else 2):
                run = folder / f"{len(found[way])} {way}".replace(" ", "_").replace(",", "")
                found[way].append(trained(folder / "data", run, *ways[way]))
    return [
        {
            "way": way,
            **{
                name: statistics.median(each[name] for each in found[way])
                for name in ("captions_per_second", "seconds", "data_wait")
            },
        }
        for way in ways
    ]


@contextmanager
def _cores(count: int) -> Iterator[None]:
    """Processes that are started meanwhile are kept to so many cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _drawn(data: Any, epoch: int, batches: int | None = None) -> int:
    """Images of an epoch's batches, all loaded."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return sum(len(batch.index) for batch in islice(loader, batches))


def _rates(ways: Mapping[str, Any], repeats: int = 5) -> dict[str, float]:
    """Images a second of data modules, an epoch each by turns; two of each, which warm up, are not counted."""
    count = {way: _drawn(data, 0) for way, data in ways.items()}
    seconds = alternate({way: partial(_drawn, data, 1) for way, data in ways.items()}, repeats)
    return {way: count[way] / statistics.median(seconds[way]) for way in ways}


def workers(folder: Path) -> Rows:
    """Batches loaded and nothing else, by loading processes: pictures decoded each time, and cached features."""
    from src.train import build_data, cache_features, instantiate

    make_data(folder / "data", 512, SIZES[1])
    config = composed(*_data(folder / "data"))
    encoder, arithmetic = instantiate(config["encoder"]), precision(config["trainer"]["precision"], "cpu")
    rows = []
    for count in (0, 1, 2, 4):
        modules = {}
        for way in ("pictures", "features"):
            config["data"] |= {"workers": count, "cache": way == "features"}
            modules[way] = build_data(config)
            if way == "features":
                cache_features(config, modules[way], encoder, ["train"], "cpu", arithmetic)
        rows.append({"workers": count, **{f"{way}_per_second": rate for way, rate in _rates(modules, 3).items()}})
    return rows


def _data(folder: Path, *overrides: str) -> list[str]:
    return [
        *("data=tsv", f"data.root={folder}", "data.train=train.tsv", "data.val=val.tsv", "data.min_count=1"),
        *(f"data.cache_dir={folder / 'cache'}", "data.verify=none", *overrides),
    ]


def shards(folder: Path) -> Rows:
    """Batches loaded and nothing else, from shards and from what shards replace: features from a warm cache, and files
    of pictures; by turns."""
    from src.prepare.shards import write_shards
    from src.train import build_data, cache_features, instantiate

    place = folder / "data"
    make_data(place, 2000, SIZES[0])
    for split in ("train", "val"):
        write_shards(place / f"{split}.tsv", folder / "features" / split, place, images=250, features=[])
        write_shards(place / f"{split}.tsv", folder / "pictures" / split, place, images=250)
    rows = []
    for what in ("features", "pictures"):
        plain = composed(*_data(place, f"data.cache={str(what == 'features').lower()}"))
        packed = composed(
            *("data=shards", f"data.root={folder / what}", "data.min_count=1", f"data.cache_dir={folder / 'cache'}"),
            *(() if what == "features" else ("data.cache=false",)),
        )
        encoder, arithmetic = instantiate(plain["encoder"]), precision(plain["trainer"]["precision"], "cpu")
        for count in (0, 2):
            modules = {}
            for way, config in (("before", plain), ("shards", packed)):
                config["data"]["workers"] = count
                modules[way] = build_data(config)
                cache_features(config, modules[way], encoder, ["train"], "cpu", arithmetic)
            rates = _rates(modules)
            rows.append({"what": what, "workers": count, **rates, "ratio": rates["shards"] / rates["before"]})
    return rows


def operations(folder: Path) -> Rows:
    """What a GPU would have to do: counted, but for the pictures' decoding, which is timed on one core."""
    pictures = {}
    for size in SIZES:
        place = folder / f"{size[0]}"
        place.mkdir()
        files = [place / name for name in make_pictures(place, 100, size)]
        decode = partial(lambda files: [*map(Preprocess(224).open, files)], files)
        seconds = statistics.median(alternate({"": decode}, 5)[""])
        pictures[size] = {
            "decoded_per_second": len(files) / seconds,
            "bytes": sum(file.stat().st_size for file in files) / len(files),
        }
    return [
        *({"what": f"JPEG {w} × {h}", **found} for (w, h), found in pictures.items()),
        *(
            {"what": costs.decoder_row(width, captions), **costs.counted_step(width, captions)}
            for width in costs.ENCODERS.values()
            for captions in (CAPTIONS, 1)
        ),
        *({"what": f"encoder {name}", **costs.counted_encoder(name)} for name in costs.ENCODERS),
    ]


class Part(NamedTuple):
    """What is measured, and how it is shown."""

    measure: Callable[[Path], Rows]
    across: str = ""
    """The chart's axis, a column; empty: no chart."""
    up: tuple[str, ...] = ()
    """Its lines, columns."""
    unit: str = ""


PARTS = {
    "tables": Part(tables, "rows", ("again_s", "first_s"), "seconds to start"),
    "images": Part(images, "images", ("again_s", "first_s"), "seconds of the command"),
    "batch": Part(batch, "batch", ("captions_per_second",), "captions a second"),
    "length": Part(length, "words", ("captions_per_second", "words_per_second"), "a second"),
    "vocabulary": Part(vocabulary, "vocabulary", ("captions_per_second",), "captions a second"),
    "processes": Part(processes),
    "workers": Part(workers),
    "shards": Part(shards),
    "operations": Part(operations),
}
DOCS = ROOT / "docs" / "scaling.md"

# ---------------------------------------------------------------- showing


def shown(value: Any) -> str:
    """A table's cell: three or four figures."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def markdown(rows: Rows) -> str:
    """Rows as a table; columns that no row before had follow."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[shown(row.get(name, "")) for name in columns] for row in rows]
    titles = [name.replace("_per_second", "/s").replace("_", " ") for name in columns]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [titles, *lines[1:]])


def chart(name: str, part: Part, rows: Rows) -> str:
    lines = [
        Line(
            up.replace("_per_second", "").replace("_s", "").replace("_", " "),
            [(r[part.across], r[up]) for r in rows],
            i,
        )
        for i, up in enumerate(part.up)
    ]
    return line_chart(lines, title=f"{part.unit} by {part.across}", across=part.across, up=part.unit, logarithmic=True)


def write_docs(results: Mapping[str, Any], page: Path = DOCS) -> None:
    """Put each measured part's table between its marks in the page, and its chart beside the page.

    Raises:
        ValueError: the page has no marks of a part.
    """
    text = page.read_text(encoding="utf-8")
    blocks = {}
    for name, found in results.items():
        about, rows = found["machine"], found["rows"]
        source = (
            f"`python -m benchmarks.scaling --only {name}`: {about['cpu']}, {about['cores']} cores, torch "
            f"{about['torch']}, {about['code']}, {about['date'][:10]}"
        )
        blocks[name] = f"{markdown(rows)}\n\n{source}" + ("" if about["quiet"] else "; the machine was not quiet") + "."
        if PARTS[name].across:
            write_atomically(page.with_name(f"scaling_{name}.svg"), chart(name, PARTS[name], rows))
            blocks[name] += f"\n\n![{PARTS[name].unit} by {PARTS[name].across}](scaling_{name}.svg)"
    if "operations" in results:
        blocks["costs"] = costs.markdown(results["operations"]["rows"])
    for name, block in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{page}: no {begin} and {end} to write between")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{block}\n{end}{rest.partition(end)[2]}"
    write_atomically(page, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.split("\n\n")[1])
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts, also those that are there")
    parser.add_argument("--docs", action="store_true", help="write docs/scaling.md from what is there; measure nothing")
    parser.add_argument("--cores", type=int, default=2, help="that all may use (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/scaling.json"), metavar="FILE", help="(%(default)s)")
    options = parser.parse_args(arguments)
    try:
        results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    except (OSError, ValueError) as error:
        parser.error(f"{options.output}: no figures of this benchmark ({error}): give another --output, or delete it")
    if options.docs:
        write_docs(results)
        return 0
    use_cores(options.cores)
    about = machine()
    warn_unless_quiet(about)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name in tqdm(options.only or [name for name in PARTS if name not in results], desc="parts"):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = {"machine": about, "rows": PARTS[name].measure(Path(folder))}
        ordered = {part: results[part] for part in PARTS if part in results}
        write_atomically(options.output, json.dumps(ordered, indent=2) + "\n")
        tqdm.write(f"\n{name}\n{markdown(results[name]['rows'])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
