"""Serve a captioner: a page and an API over HTTP, `python -m src.serve`, or `make serve`."""

import argparse
import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from src.config import forget_rare_shapes, keep_freed_memory
from src.picture_flags import add_model_flag

if TYPE_CHECKING:
    from uvicorn import Server

    from src.service.app import Service

TOKEN = "CAPTIONARY_TOKEN"
SHORTEST_TOKEN = 16
GRACE = 5.0
"""Seconds that clients have to take the last answers."""

EPILOG = f"""examples:
  python -m src.serve                            the page and the API at http://127.0.0.1:8000/
  python -m src.serve --index photos.index       with a search of the pictures that `python -m src.index` indexed
  python -m src.serve --model runs/demo --port 9000 --open
  {TOKEN}=$(openssl rand -hex 16) python -m src.serve --host 0.0.0.0
                                                 for other machines, which need the token

Ctrl-C or SIGTERM ends it: what was accepted is answered first. A second one ends it at once.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.serve",
        description="Serve a captioner: a page and an API over HTTP.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_flag(result)
    result.add_argument(
        "--index", type=Path, metavar="FOLDER", help="pictures to be searched: an index that `python -m src.index` made"
    )
    result.add_argument("--device", help="cpu, cuda, mps (default: the fastest here)")
    result.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    result.add_argument("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    result.add_argument("--open", action="store_true", help="open the page in a browser, where there is a display")
    guard = result.add_argument_group("who may ask")
    guard.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"holds the token that requests must bring (or set {TOKEN})"
    )
    guard.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="a further name of this machine that requests may give, behind a proxy for instance; repeatable; where "
        "other machines may ask, any is taken",
    )
    work = result.add_argument_group("work and limits")
    work.add_argument(
        "--refuse-unfamiliar",
        type=float,
        metavar="SHARE",
        help="refuse pictures that are as unfamiliar as that or more, in [0, 1], such as 0.999, of a captioner with a "
        "detector",
    )
    work.add_argument("--batch", type=int, default=16, metavar="N", help="pictures computed together (%(default)s)")
    work.add_argument(
        "--wait-ms",
        type=float,
        default=10,
        metavar="MS",
        help="how long a batch waits for pictures that are being decoded (%(default)s)",
    )
    work.add_argument(
        "--queue",
        type=int,
        default=64,
        metavar="N",
        help="pictures accepted and not answered, at most, and thumbnails (%(default)s); four times as many requests "
        "may be arriving",
    )
    work.add_argument(
        "--max-bytes",
        type=int,
        default=20_000_000,
        metavar="N",
        help="of a request (%(default)s); all that wait may have 16 times as many",
    )
    work.add_argument("--max-pixels", type=int, default=50_000_000, metavar="N", help="of a picture (%(default)s)")
    work.add_argument(
        "--timeout",
        type=float,
        default=30,
        metavar="S",
        help="seconds for a request's header to arrive, again for its picture, for its answer, and for the client to "
        "take that (%(default)s)",
    )
    return result


def token_of(options: argparse.Namespace) -> str | None:
    """The token that is asked for; None where there is to be none.

    Raises:
        ValueError: a token that cannot be used, or none where one is needed.
        OSError: its file cannot be read.
    """
    from src.service.guard import is_loopback

    source, token = TOKEN, os.environ.get(TOKEN, "")
    if options.token_file is not None:
        source, token = f"--token-file {options.token_file}", options.token_file.read_text(encoding="utf-8")
    token = token.strip()
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise ValueError(f"{source}: a token has {SHORTEST_TOKEN} letters and digits or more: `openssl rand -hex 16`")
    if options.token_file is not None and not token:
        raise ValueError(f"{source}: empty; write a token into it: `openssl rand -hex 16`")
    if not token and not is_loopback(options.host):
        raise ValueError(
            f"--host {options.host}: other machines reach this address, so a token is needed: give --token-file FILE, "
            f"or set {TOKEN}"
        )
    return token or None


def hosts_of(options: argparse.Namespace) -> list[str] | None:
    """Further names of this machine; None where any is taken, as requests bring a token.

    Raises:
        ValueError: names where any is taken.
    """
    from src.service.guard import is_loopback

    if is_loopback(options.host):
        return options.name
    if options.name:
        raise ValueError(f"--name {options.name[0]}: with --host {options.host} any name is taken: leave --name out")
    return None


def check_numbers(options: argparse.Namespace) -> None:
    """Raises ValueError for a number that cannot be, naming its flag."""
    for flag, least in (("batch", 1), ("queue", 1), ("max_bytes", 1), ("max_pixels", 1), ("wait_ms", 0), ("port", 0)):
        if getattr(options, flag) < least:
            raise ValueError(f"--{flag.replace('_', '-')} {getattr(options, flag):g}: {least} or more")
    if options.refuse_unfamiliar is not None and not 0 <= options.refuse_unfamiliar <= 1:
        raise ValueError(f"--refuse-unfamiliar {options.refuse_unfamiliar:g}: a number from 0 to 1 is wanted")
    if not 0 < options.timeout < math.inf:
        raise ValueError(f"--timeout {options.timeout:g}: above 0, and not endless")
    if options.port > 65535:
        raise ValueError(f"--port {options.port}: 65535 at most")


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        ValueError: it cannot be had; says why.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        result = socket.socket(family, kind)
        result.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        result.bind(address)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: {error.strerror}; --port 0 takes a free port") from error
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 when it was ended by a signal, 2 for a wrong call."""
    options = parser().parse_args(arguments)
    keep_freed_memory()
    forget_rare_shapes()
    try:
        import uvicorn

        from src.service.app import Settings, build_app
        from src.service.connections import configured
        from src.service.pictures import Limits
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: `pip install -e '.[serve]'`, or `make install`", file=sys.stderr)
        return 2
    from src.detection import detector_of
    from src.ensemble import EnsembleCaptioner

    try:
        check_numbers(options)
        token, hosts = token_of(options), hosts_of(options)
        at = listening(options.host, options.port)
        captioner = EnsembleCaptioner.load_all(options.model, device_name=options.device)
        if options.refuse_unfamiliar is not None:
            detector_of(captioner)
        settings = Settings(
            batch=options.batch,
            wait=options.wait_ms / 1000,
            queue=options.queue,
            limits=Limits(options.max_bytes, options.max_pixels, seconds=options.timeout),
            token=token,
            hosts=hosts,
            unfamiliar=options.refuse_unfamiliar,
        )
        index = None
        if options.index is not None:
            from src.retrieval import Index

            index = Index.open(options.index)
        app = build_app(captioner, settings, index)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shown = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{shown}:{at.getsockname()[1]}/"
    asyncio.run(serve(uvicorn.Server(configured(app)), app.service, at, address, options.open))
    return 0


async def serve(server: "Server", service: "Service", at: socket.socket, address: str, browse: bool) -> None:
    """Answer until a signal comes, and then until what was accepted is answered; a second one ends it at once."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        if ended.is_set():
            end(130)
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    # uvicorn's own way closes the door at once, and ends by the signal
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]
    serving = asyncio.create_task(server.serve(sockets=[at]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print(f"Captionary answers at {address} (Ctrl-C ends it)", flush=True)
    if browse and (sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(address)
    await asyncio.wait([serving, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    service.stopping = True
    while service.busy and not serving.done():
        await asyncio.sleep(0.02)
    server.should_exit = True
    await asyncio.wait([serving], timeout=GRACE)
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await serving


def end(status: int) -> NoReturn:
    """End this process, whatever its threads do: `sys.exit` would wait for a picture that is still being decoded."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    end(main())
