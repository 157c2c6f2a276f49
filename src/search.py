"""Search indexed pictures: `python -m src.search "a dog in the snow" --index photos.index`."""

import argparse
import html
import json
import os
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from src.files import encodable, write_atomically
from src.matching import unknown_words
from src.picture_flags import add_model_flag, ended, one_captioner
from src.retrieval import Found, Index
from src.rows import check_output


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.search",
        description="Search pictures that `python -m src.index` has indexed: those that a sentence describes, with "
        "--picture those that are like a picture, with --words those whose captions hold words.",
        usage="%(prog)s --index FOLDER [FLAGS] SENTENCE | --picture FILE",
    )
    result.add_argument("sentence", nargs="?", help="what is to be seen, in English or Chinese")
    result.add_argument("--index", type=Path, required=True, metavar="FOLDER", help="the index")
    result.add_argument("--picture", metavar="FILE", help="find pictures like this one")
    result.add_argument("--words", action="store_true", help="find the sentence's words in generated captions (BM25)")
    result.add_argument("-n", "--count", type=int, default=10, help="how many pictures (default: 10)")
    result.add_argument(
        "--folder", help="only pictures in it or below: its path, or some parts that lie anywhere in a picture's path"
    )
    result.add_argument(
        "--rerank",
        type=int,
        default=20,
        metavar="N",
        help="of a sentence, look at the first N again, and rank by how likely the captioner is to say it of them too "
        "(default: 20; 0: not at all, which is faster)",
    )
    result.add_argument("--json", action="store_true", help="a JSON object a line: path, score, caption")
    result.add_argument("--html", type=Path, metavar="FILE", help="write a page with the pictures instead of printing")
    add_model_flag(result, several=False, needs=", of a captioner with a matcher")
    result.add_argument("--device", help="cpu, cuda, mps (default: the fastest here)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 for a wrong call, 130 where it was interrupted."""
    command = parser()
    options = command.parse_args(arguments)
    if (options.sentence is None) == (options.picture is None):
        command.error("what is to be found? Give a sentence, or --picture FILE")
    return ended(run, options)


def run(options: argparse.Namespace) -> int:
    """What `main` is asked for, but for its errors."""
    show(find(options), options)
    return 0


def find(options: argparse.Namespace) -> list[Found]:
    """What is asked for."""
    if options.words and options.picture:
        raise ValueError("--words searches captions for a sentence's words, and --picture has none: leave one out")
    if options.rerank < 0:
        raise ValueError(f"--rerank {options.rerank}: 0 or more")
    if options.html:
        check_output(options.html, [Path(options.picture)] if options.picture else [])
    index = Index.open(options.index)
    if options.words:
        return index.by_words(options.sentence, options.count, options.folder)
    captioner = one_captioner(options)
    if options.picture:
        return index.by_picture(captioner, options.picture, options.count, options.folder)
    found = index.by_sentence(captioner, options.sentence, options.count, options.folder, options.rerank)
    if unknown := unknown_words(captioner, options.sentence):
        print(f"the captioner does not know, and it is not searched by: {', '.join(unknown)}", file=sys.stderr)
    return found


def show(found: Sequence[Found], options: argparse.Namespace) -> None:
    """Print what was found, or write it as a page."""
    if options.html:
        text = page(found, options.sentence or f"like {options.picture}", options.html.parent)
        write_atomically(options.html, encodable(text))
        print(encodable(str(options.html)))
        return
    for each in found:
        if options.json:
            print(encodable(json.dumps(each._asdict(), ensure_ascii=False)))
        else:
            path = each.path.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
            print(encodable(f"{each.score:.3f}\t{path}\t{each.caption.replace(chr(10), ' / ')}"))
    if not found:
        print("nothing was found", file=sys.stderr)


def page(found: Sequence[Found], title: str, folder: Path) -> str:
    """A page of pictures, which are read from where they lie, as the page's folder sees them."""
    figures = "".join(
        f'<figure><img src="{address(each.path, folder)}" alt="">'
        f"<figcaption>{each.score:.3f} {html.escape(each.caption)}<br><small>{html.escape(each.path)}</small>"
        "</figcaption></figure>\n"
        for each in found
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
body {{ font: 16px/1.4 system-ui, sans-serif; margin: 2rem; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }}
h1 {{ grid-column: 1 / -1; font-size: 1.4rem; margin: 0; }}
figure {{ margin: 0; }}
img {{ width: 100%; height: 12rem; object-fit: cover; background: #8883; }}
small {{ color: #888; overflow-wrap: anywhere; }}
</style>
<h1>{html.escape(title)}</h1>
{figures}</html>
"""


def address(path: str, folder: Path) -> str:
    """A file's, as a page in a folder names it."""
    return html.escape(urllib.parse.quote(os.fsencode(os.path.relpath(path, folder.absolute()))))


if __name__ == "__main__":
    sys.exit(main())
