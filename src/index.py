"""Index pictures, so that they can be searched: `python -m src.index photos/ --index photos.index`."""

import argparse
import fnmatch
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from src.config import keep_freed_memory
from src.files import encodable
from src.picture_flags import add_computing_flags, add_model_flag, check_computing, ended, one_captioner
from src.pictures import find_pictures
from src.retrieval import Index
from src.segments import MANIFEST


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.index",
        description="Index pictures, so that `python -m src.search` finds them by a sentence, by a picture, or by "
        "words of their captions. The same call again adds what is new or has changed; one that was stopped goes on.",
        usage="%(prog)s --index FOLDER [FLAGS] [FILE|FOLDER|GLOB ...]",
    )
    result.add_argument("pictures", nargs="*", metavar="FILE|FOLDER|GLOB", help="what to index")
    result.add_argument("--index", type=Path, required=True, metavar="FOLDER", help="where the index is, or is to be")
    add_model_flag(result, several=False, needs=", of a captioner with a matcher")
    result.add_argument(
        "--language",
        nargs="+",
        metavar="TAG",
        help="of the captions that words are searched in, such as en zh: one a language (default: the captioner's own)",
    )
    result.add_argument(
        "--no-captions", action="store_true", help="several times as fast; the index cannot be searched by words"
    )
    result.add_argument(
        "--prune",
        action="store_true",
        help="take out pictures that are gone, of those named, fitting a pattern, or below folders",
    )
    result.add_argument(
        "--remove", nargs="+", default=[], metavar="PATH", help="take out pictures, or all below folders"
    )
    result.add_argument(
        "--compact",
        action="store_true",
        help="write all as one segment: the fastest to search, and no longer to add to",
    )
    add_computing_flags(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where some pictures could not be read, 2 for a wrong call, 130
    where it was interrupted."""
    command = parser()
    options = command.parse_args(arguments)
    if not (options.pictures or options.remove or options.compact):
        command.error("which pictures? Name files, folders or patterns, or --remove PATH")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    keep_freed_memory()
    return ended(run, options, goes_on=True)


def run(options: argparse.Namespace) -> int:
    """What `main` is asked for, but for its errors."""
    if options.prune and not options.pictures:
        raise ValueError("--prune: of which folders? Name them, as where they were indexed")
    if options.no_captions and options.language:
        raise ValueError("--language and --no-captions: leave one of the two out")
    check_computing(options)
    failed: list[str] = []
    if options.pictures:
        if options.prune and not (options.index / MANIFEST).exists():
            raise ValueError(f"--prune: {options.index} is no index yet: leave --prune out to build it")
        pictures = named(options)
        captioner = one_captioner(options)
        index = Index.create(options.index, captioner, [] if options.no_captions else options.language)
        with tqdm(total=len(pictures), unit="img", disable=None) as bar:
            added = index.add(captioner, pictures, options.batch_size, bar.update)
        for sentence in (failed := added.failed):
            print(f"error: {sentence}", file=sys.stderr)
        print(f"{encodable(str(options.index))}: {added.new:,} pictures indexed, {added.unchanged:,} unchanged", end="")
    else:
        index = Index.open(options.index)
        print(encodable(str(options.index)), end=":")
    removed = 0
    if options.remove:
        with index.updating() as update:
            for path in options.remove:
                count = update.remove([path])
                removed += count
                if not count:
                    print(f"--remove {path}: nothing of that name is in the index", file=sys.stderr)
    if options.prune:
        removed += index.remove(gone(index, options.pictures))
    if options.compact:
        with index.updating() as update:
            update.commit(together=True)
    print(f", {removed:,} removed; it holds {len(index):,}")
    if failed:
        print(f"{len(failed)} of {len(pictures)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


def named(options: argparse.Namespace) -> list[Path]:
    """The pictures that are named; with --prune, what is gone from where only the index has any is not missed."""
    found: list[Path | str] = []
    for given in options.pictures:
        try:
            found += find_pictures([given])
        except ValueError:
            if not (options.prune and any(covers(given, row.path) for row in Index.open(options.index).rows())):
                raise
    return list(map(Path, dict.fromkeys(found)))


def covers(given: str, path: str) -> bool:
    """Whether a file, a folder or a pattern is a picture's path, above it, or fits it."""
    whole = os.path.abspath(given)
    return path == whole or path.startswith(os.path.join(whole, "")) or fnmatch.fnmatchcase(path, whole)


def gone(index: Index, given: Sequence[str]) -> list[str]:
    """The pictures of an index that `given` covers and whose files are there no longer."""
    paths = (row.path for row in index.rows())
    return [path for path in paths if any(covers(each, path) for each in given) and not os.path.exists(path)]


if __name__ == "__main__":
    sys.exit(main())
