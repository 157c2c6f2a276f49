"""The flags and the endings that commands share whose arguments are pictures."""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from src.bundle import SHIPPED, looks_saved
from src.captioner import Captioner
from src.data.features import state_digest
from src.files import read_in_part
from src.terminal import guarded


def add_model_flag(parser: argparse.ArgumentParser, several: bool = True, needs: str = "") -> None:
    """Add `--model`, by default the captioner that comes with the code.

    Args:
        parser: to it.
        several: whether there may be several, which then caption together.
        needs: what else is wanted of a single one.
    """
    text = "a bundle/ directory, a run's folder or name, or a .ckpt (`python -m src.train` leaves them)"
    own = "(default: the captioner that comes with the code, of photographs, in English and Chinese)"
    if several:
        text += "; several of one vocabulary caption together, as an ensemble"
        parser.add_argument("--model", nargs="+", default=[str(SHIPPED)], help=f"{text} {own}")
    else:
        parser.add_argument("--model", default=str(SHIPPED), help=f"{text}{needs} {own}")


def add_computing_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--batch-size` and `--device`."""
    parser.add_argument("--batch-size", type=int, default=16, help="pictures at a time (default: 16)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the fastest here)")


def models_and_pictures(models: Sequence[str], pictures: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands behind `--model` as captioners, and from the first that is none on as pictures, before the others."""
    count = 1
    while count < len(models) and looks_saved(Path(models[count])):
        count += 1
    return list(models[:count]), [*models[count:], *pictures]


def check_computing(options: argparse.Namespace) -> None:
    """Raises ValueError for a batch size that cannot be."""
    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size}: 1 or more")


def one_captioner(options: argparse.Namespace) -> Captioner:
    """The captioner that `--model` and `--device` name.

    Raises:
        ValueError: there is none, a damaged one, one of regions computed beforehand; or no such device here.
    """
    captioner = Captioner.load(options.model, device_name=options.device)
    captioner.check_source()
    return captioner


def ended(run: Callable[[argparse.Namespace], int], options: argparse.Namespace, goes_on: bool = False) -> int:
    """The exit status of a command: what `run` returns, 2 for what its user can mend, in a sentence, and 130 where it
    was interrupted; `goes_on`: the same call then takes up what it has done."""
    try:
        with guarded(), read_in_part():
            return run(options)
        return 0
    except (ValueError, OSError, ImportError) as error:
        with guarded():
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted" + ("; the same call goes on" if goes_on else ""), file=sys.stderr)
        return 130


def depends_on(items: Sequence[Path | str], captioner: Captioner, options: argparse.Namespace) -> str:
    """A digest of all that a command's output depends on: weights, configs, search, flags, files."""

    def stats(path: Path | str) -> tuple[str, ...]:
        there = isinstance(path, Path) and path.exists()
        return (str(path), *map(str, (path.stat().st_size, path.stat().st_mtime_ns) if there else ()))  # type: ignore[union-attr]

    how = {name: str(value) for name, value in vars(options).items() if name not in ("output", "devices", "device")}
    own = [{name: part for name, part in each.config.items() if name != "provenance"} for each in captioner.members]
    known = [captioner.vocabulary.words, captioner.control, captioner.calibration, captioner.matching]
    if captioner.detector is not None:
        known.append([hashlib.sha256(array.tobytes()).hexdigest() for array in captioner.detector[:-1]])
    regions = Path(options.regions) if getattr(options, "regions", None) else None
    files = [*items, *([regions, *sorted(regions.rglob("*"))] if regions else [])]
    every = [state_digest(captioner.model), own, captioner.config["generation"], known, how, *map(stats, files)]
    return hashlib.sha256(json.dumps(every, sort_keys=True, default=str).encode()).hexdigest()[:12]
