"""What the service can bear, on loopback: `python -m benchmarks.serve`.

Two servers of `python -m src.serve`, one with its dynamic batching and one with `--batch 1`, asked in turn by so many
clients at once: requests a second, and how long an answer takes. Then thousands of requests of the first, of which
every tenth client leaves before its answer: what it holds in memory over them, and whether each other request got the
answer that the same picture gets alone. Pictures are cut from scikit-image's photographs, as JPEGs of 640 × 480, or
with FLICKR8K (its folder) its validation images. Clients and servers share the cores. Wants a quiet machine, and five
minutes.
"""

import argparse
import asyncio
import io
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.measuring import Row, machine, table, use_cores, warn_unless_quiet
from src.config import ROOT

FLOOR = 1.3
"""Times as many requests a second as one by one."""
GROWTH = 1.05
"""What memory may grow to from a tenth of the requests to the last, as a share."""


def pictures(count: int) -> list[bytes]:
    """JPEG files."""
    if folder := os.environ.get("FLICKR8K"):
        root = Path(folder)
        names = dict.fromkeys(line.split("\t")[0] for line in (root / "val.tsv").read_text().splitlines())
        return [(root / name).read_bytes() for name in list(names)[:count]]
    from skimage import data

    photos = [Image.fromarray(photo()) for photo in (data.astronaut, data.chelsea, data.coffee, data.rocket)]
    rng, files = random.Random(0), []
    for number in range(count):
        photo = photos[number % len(photos)]
        width = rng.randint(photo.width // 2, photo.width)
        height = min(photo.height, width * 3 // 4)
        left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
        buffer = io.BytesIO()
        photo.crop((left, top, left + width, top + height)).resize((640, 480)).save(buffer, "JPEG", quality=88)
        files.append(buffer.getvalue())
    return files


@contextmanager
def served(*flags: str) -> Any:
    """A server process, its address."""
    command = [sys.executable, "-m", "src.serve", "--port", "0", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split("answers at ")[1].split()[0]
    finally:
        process.terminate()
        process.wait(60)


async def ask(client: httpx.AsyncClient, address: str, data: bytes) -> str:
    """A picture's caption; comes again where the queue is full."""
    while True:
        answer = await client.post(f"{address}v1/caption", content=data, headers={"content-type": "image/jpeg"})
        if answer.status_code != 429:
            answer.raise_for_status()
            return answer.json()["text"]
        await asyncio.sleep(float(answer.headers["retry-after"]))


async def many(address: str, files: Sequence[bytes], count: int, clients: int) -> tuple[float, list[float]]:
    """Requests a second, and the seconds of each, of `clients` that ask for `count` captions in all."""
    seconds: list[float] = []
    left = iter(range(count))

    async def one(client: httpx.AsyncClient) -> None:
        for number in left:
            begun = time.perf_counter()
            await ask(client, address, files[number % len(files)])
            seconds.append(time.perf_counter() - begun)

    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
        begun = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        return count / (time.perf_counter() - begun), seconds


def throughput(addresses: dict[str, str], files: Sequence[bytes], count: int, clients: int, rounds: int) -> dict:
    """Of each server its rates and all seconds, in alternating order; a first round is not counted."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in addresses}
    for number in range(rounds + 1):
        for name in list(addresses) if number % 2 else reversed(list(addresses)):
            rate, seconds = asyncio.run(many(addresses[name], files, count, clients))
            if number:
                found[name][0].append(rate)
                found[name][1].extend(seconds)
    return found


def gauge(address: str, name: str) -> float:
    """What /metrics says."""
    text = httpx.get(f"{address}metrics", trust_env=False).text
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def held_mb(address: str) -> float:
    """What a server holds in memory."""
    return gauge(address, "process_resident_memory_bytes") / 2**20


async def endure(address: str, files: Sequence[bytes], count: int, clients: int) -> dict[str, Any]:
    """Ask so often, every tenth client leaving early; what came of it."""
    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
        alone = [await ask(client, address, data) for data in files]
        memory, outcomes, left = [held_mb(address)], Counter(), iter(range(count))  # type: ignore[var-annotated]
        rng = random.Random(0)

        async def one() -> None:
            for number in left:
                which = number % len(files)
                if number % 10 == 9:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(rng.uniform(0, 0.3)):
                            await ask(client, address, files[which])
                    outcomes["left"] += 1
                else:
                    said = await ask(client, address, files[which])
                    outcomes["as alone" if said == alone[which] else "otherwise"] += 1
                if number % (count // 10) == count // 10 - 1:
                    memory.append(held_mb(address))

        await asyncio.gather(*(one() for _ in range(clients)))
        for _ in range(100):  # those who left last are noticed
            if not (waiting := gauge(address, "captionary_pictures_waiting")):
                break
            await asyncio.sleep(0.05)
    return {"memory": memory, "outcomes": outcomes, "waiting": waiting}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=200, help="of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each server (%(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="that ask at once (%(default)s)")
    parser.add_argument("--endure", type=int, default=5000, help="requests over which memory is watched (%(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="that all may use (%(default)s)")
    parser.add_argument("--model", nargs=1, default=[], help="another captioner than the one that comes with the code")
    options = parser.parse_args(arguments)
    use_cores(options.cores)
    described = machine()
    warn_unless_quiet(described)
    files, model = pictures(64), ["--model", *options.model] if options.model else []
    rows = []
    with ExitStack() as stack:
        addresses = {
            "batched": stack.enter_context(served(*model)),
            "one by one": stack.enter_context(served("--batch", "1", *model)),
        }
        for clients in (options.clients, 1):
            count = options.requests if clients > 1 else options.requests // 4
            found = throughput(addresses, files, count, clients, options.rounds)
            ours, other = (statistics.median(rates) for rates, _ in found.values())
            floor = FLOOR if clients > 1 else None
            who = f"{clients} clients" if clients > 1 else "1 client"
            rows.append(Row(f"{who}: requests/s", f"{ours:.1f}", f"{other:.1f}", ours / other, floor))
            for share in (50, 95, 99):
                ours, other = (1000 * float(np.percentile(seconds, share)) for _, seconds in found.values())
                rows.append(Row(f"{who}: p{share}", f"{ours:.0f} ms", f"{other:.0f} ms", ours / other))
        lasting = asyncio.run(endure(addresses["batched"], files, options.endure, options.clients))
    memory, outcomes = lasting["memory"], lasting["outcomes"]
    early, late = memory[1], memory[-1]
    what = f"memory after {options.endure} requests, beside after {options.endure // 10}"
    rows.append(Row(what, f"{late:.0f} MB", f"{early:.0f} MB", late / early, GROWTH, at_most=True))
    answered, asked = outcomes["as alone"] + outcomes["otherwise"], options.endure - outcomes["left"]
    rows.append(Row("answered, of those whose client stayed", str(answered), str(asked), answered / asked, 1.0))
    print(
        f"{described['cpu']}, {described['cores']} cores, torch {described['torch']}, {described['precision']}, "
        f"{described['code']}, {described['date'][:10]}\n\n{table(rows)}\n\n"
        "ours: dynamic batching; baseline: --batch 1, or as the line says; rates are medians of rounds\n"
        f"{outcomes['left']} clients left early; {outcomes['as alone']} answers are the caption that the picture gets "
        f"alone, {outcomes['otherwise']} others; {lasting['waiting']:.0f} pictures wait at the end\n"
        f"memory by tenths: {', '.join(f'{each:.0f}' for each in memory)} MB"
    )
    warn_unless_quiet(described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
