"""The search index at 10⁴, 10⁵, 10⁶ pictures: `python -m benchmarks.index`.

What building it costs, what a search does, how many of the ten nearest it finds beside looking at all, and what it
takes in memory and on the disk. The vectors are drawn, in clusters; captions and paths are made up. Each size is
searched in a process of its own. Wants a quiet machine, 4 GB of disk and a quarter of an hour.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import machine, use_cores, warn_unless_quiet
from src.config import ROOT
from src.files import write_atomically
from src.retrieval import Index
from src.segments import Row, new_manifest, write_manifest

SIZE = 256
CLUSTERS, DIMENSIONS = 1000, 32
AT_ONCE = 50_000
"""Pictures that are kept at a time."""
WORDS = [f"word{number}" for number in range(300)]


def vectors(count: int, seed: int) -> np.ndarray:
    """Unit vectors (count, SIZE) in clusters of DIMENSIONS dimensions, with a little of all others: those of pictures,
    too, vary in some directions more than in others."""
    fixed = np.random.default_rng(0)
    centres = fixed.standard_normal((CLUSTERS, DIMENSIONS), np.float32)
    turned = fixed.standard_normal((DIMENSIONS, SIZE), np.float32)
    rng = np.random.default_rng([1, seed])
    drawn = centres[rng.integers(CLUSTERS, size=count)] + 0.7 * rng.standard_normal((count, DIMENSIONS), np.float32)
    drawn = drawn @ turned + 0.5 * rng.standard_normal((count, SIZE), np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def pictures(first: int, count: int) -> list[Row]:
    """Made-up rows: a hundred folders, ten words a caption, the likelier the lower their number."""
    rng = np.random.default_rng([2, first])
    numbers = (len(WORDS) * rng.random((count, 10)) ** 3).astype(int)
    return [
        Row(f"/photos/{(first + i) % 100:02d}/holiday/IMG_{first + i:07d}.jpg", 1, 1, " ".join(WORDS[n] for n in own))
        for i, own in enumerate(numbers.tolist())
    ]


def resident() -> dict[str, float]:
    """MB that this process has in memory: its own, and of files, which the system may drop."""
    said = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line)
    return {name: int(said[field].split()[0]) / 1024 for name, field in (("own", "RssAnon"), ("files", "RssFile"))}


def median_ms(run: Callable[[Any], Any], queries: Sequence[Any]) -> float:
    """Milliseconds of a query, the median of one run each; a few before are not counted."""
    for query in queries[:5]:
        run(query)
    seconds = []
    for query in queries:
        start = time.perf_counter()
        run(query)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def build(directory: Path, count: int) -> float:
    """Build an index; returns the seconds that it took."""
    directory.mkdir()
    write_manifest(directory, new_manifest({"digest": "", "size": SIZE}, [""]))
    index, seconds = Index.open(directory), 0.0
    for first in range(0, count, AT_ONCE):
        some = min(AT_ONCE, count - first)
        rows, drawn = pictures(first, some), vectors(some, first)
        start = time.perf_counter()
        with index.updating() as update:
            update.put(rows, drawn)
        seconds += time.perf_counter() - start
    return seconds


def exact(count: int, queries: np.ndarray) -> list[set[int]]:
    """The ten nearest of each query among all vectors, by their products in float32."""
    best = np.zeros((len(queries), 0), np.float32)
    names = np.zeros((len(queries), 0), np.int64)
    for first in range(0, count, AT_ONCE):
        some = vectors(min(AT_ONCE, count - first), first)
        best = np.concatenate([best, queries @ some.T], 1)
        names = np.concatenate(
            [names, np.broadcast_to(np.arange(first, first + len(some)), (len(queries), len(some)))], 1
        )
        kept = np.argsort(-best, 1)[:, :10]
        best, names = np.take_along_axis(best, kept, 1), np.take_along_axis(names, kept, 1)
    return [set(row) for row in names.tolist()]


def measure(directory: Path, count: int, queries: int) -> dict[str, Any]:
    """What searching an index costs, and finds."""
    before = resident()
    start = time.perf_counter()
    index = Index.open(directory)
    opened = time.perf_counter() - start
    asked = vectors(queries, 10**9)
    found = [{int(each.path[-11:-4]) for each in index.by_vector(query, 10)} for query in asked]
    words = [" ".join(row.caption.split()[:3]) for row in pictures(10**8, queries)]
    result = {
        "segments": len(index.state.segments),
        "open s": opened,
        "by vector ms": median_ms(lambda query: index.by_vector(query, 10), asked),
        "in one folder of 100 ms": median_ms(lambda query: index.by_vector(query, 10, "/photos/42"), asked),
        "by three words ms": median_ms(lambda text: index.by_words(text, 10), words),
    }
    after = resident()
    result |= {f"{name} MB": after[name] - before[name] for name in after}
    parts = {"vectors": ("vectors.npy", "inverted.faiss"), "all": ("*",)}
    for name, patterns in parts.items():
        sizes = [path.stat().st_size for pattern in patterns for path in directory.rglob(pattern) if path.is_file()]
        result[f"disk, {name} MB"] = sum(sizes) / 1e6
    best = exact(count, asked)
    return {"recall@10": sum(len(a & b) for a, b in zip(found, best, strict=True)) / (10 * queries), **result}


def compact(directory: Path) -> dict[str, float]:
    """What it costs to write an index as one segment: seconds, and MB that this process held at most, besides what it
    had to begin with."""
    before = sum(resident().values())
    start = time.perf_counter()
    with Index.open(directory).updating() as update:
        update.commit(together=True)
    seconds = time.perf_counter() - start
    return {
        "compacting s": seconds,
        "compacting MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before,
    }


def one(count: int, queries: int, folder: Path) -> dict[str, Any]:
    """All that is said of a size, the index built in this process and searched in others."""

    def searched() -> dict[str, Any]:
        call = [sys.executable, "-m", "benchmarks.index", "--measure", str(folder / "index"), str(count), str(queries)]
        return json.loads(subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)

    seconds = build(folder / "index", count)
    result = {"pictures": count, "pictures/s": count / seconds, **searched()}
    index = Index.open(folder / "index")
    drawn = vectors(1000, 10**9 + 1)
    start = time.perf_counter()
    with index.updating() as update:
        update.put([row._replace(path=f"/new{row.path}") for row in pictures(0, 1000)], drawn)
    result["1,000 more s"] = time.perf_counter() - start
    index.remove(["/new"])
    call = [sys.executable, "-m", "benchmarks.index", "--compact", str(folder / "index")]
    result |= json.loads(subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {**result, "compacted": searched()}


def table(results: Sequence[dict[str, Any]]) -> str:
    """What docs/search.md says, in Markdown."""
    columns = {
        "by vector, ms": lambda own: f"{own['by vector ms']:.1f}",
        "in a folder, ms": lambda own: f"{own['in one folder of 100 ms']:.1f}",
        "by three words, ms": lambda own: f"{own['by three words ms']:.1f}",
        "recall@10": lambda own: f"{100 * own['recall@10']:.1f}",
        "memory, MB": lambda own: f"{own['own MB'] + own['files MB']:,.0f}",
        "disk, vectors, MB": lambda own: f"{own['disk, vectors MB']:,.0f}",
        "disk, all, MB": lambda own: f"{own['disk, all MB']:,.0f}",
    }
    built_columns = ["built, pictures/s", "1,000 more, s", "compacted, s", "holding, MB"]
    head = ["pictures", "segments", *built_columns, *columns]
    rows = [head, ["---"] * len(head)]
    for each in results:
        built = [f"{each['pictures/s']:,.0f}", f"{each['1,000 more s']:.2f}", "", ""]
        compacted = ["", "", f"{each['compacting s']:.1f}", f"{each['compacting MB']:,.0f}"]
        for own, first in ((each, built), (each["compacted"], compacted)):
            own_columns = [cell(own) for cell in columns.values()]
            rows.append([f"{each['pictures']:,}", str(own["segments"]), *first, *own_columns])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__.split("\n\n")[1])
    parser.add_argument("--pictures", nargs="+", type=int, default=[10**4, 10**5, 10**6], help="(%(default)s)")
    parser.add_argument("--queries", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="that all may use (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/index.json"), metavar="FILE", help="(%(default)s)")
    parser.add_argument("--compact", type=Path, metavar="INDEX", help="one index, and say what it cost, as JSON")
    parser.add_argument("--measure", nargs=3, metavar=("INDEX", "PICTURES", "QUERIES"), help="of one index, as JSON")
    options = parser.parse_args(arguments)
    use_cores(options.cores)
    if options.measure:
        directory, count, queries = options.measure
        print(json.dumps(measure(Path(directory), int(count), int(queries))))
        return 0
    if options.compact:
        print(json.dumps(compact(options.compact)))
        return 0
    about = machine()
    warn_unless_quiet(about)
    results = []
    for count in options.pictures:
        with tempfile.TemporaryDirectory() as folder:
            results.append(one(count, options.queries, Path(folder)))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.output, json.dumps({"machine": about, "results": results}, indent=2) + "\n")
        print(f"{count:,} done", file=sys.stderr, flush=True)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
