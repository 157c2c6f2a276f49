"""Several tables in one, each with its tag in the third column."""

import argparse
from pathlib import Path

from src.data.control import tag_tokens
from src.data.tsv import read_tsv
from src.files import write_atomically
from src.prepare.importer import many


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `python -m src.prepare tagged`."""
    text = "several TSVs in one, whose third column tells them apart, for control=tags"
    parser = subparsers.add_parser("tagged", help=text, description=text)
    parser.add_argument("output", type=Path, metavar="OUT.tsv", help="the table to write")
    parser.add_argument("tables", nargs="+", metavar="TAG=FILE.tsv", help="such as en=train.tsv; style=funny=f.tsv too")
    parser.add_argument("--overwrite", action="store_true", help="replace a table that has other rows")
    parser.set_defaults(run=lambda o: write_tagged(o.output, o.tables, o.overwrite))


def write_tagged(output: Path, tables: list[str], overwrite: bool = False) -> None:
    """Write the rows of each `TAG=FILE` after one another, the tag before those that a row has already. Image paths
    stay as they are: all tables are of one data.root.

    Raises:
        ValueError: no TAG=FILE, a tag that cannot be, or a bad row; names it.
        FileExistsError: the table is there with other rows.
    """
    rows: list[str] = []
    said: list[str] = []
    for table in tables:
        tag, _, file = table.rpartition("=")
        if not tag or not file:
            raise ValueError(f"{table}: TAG=FILE.tsv is wanted, such as en=train.tsv")
        (token,) = tag_tokens([tag])
        path = Path(file)
        read = read_tsv(path, path.parent, verify="none")
        before = len(rows)
        for image, texts, tags in zip(read.images, read.captions, read.tags, strict=True):
            for text, own in zip(texts, tags, strict=True):
                others = [name for name in tag_tokens(own) if name != token]
                rows.append(f"{image}\t{text}\t{','.join(name[1:-1] for name in (token, *others))}\n")
        said.append(
            f"  {tag:9} {many(len(read.images), 'image'):>15} {many(len(rows) - before, 'caption'):>17}  {path}"
        )
    content = "".join(rows)
    if output.exists() and not overwrite and output.read_bytes() != content.encode():
        raise FileExistsError(f"{output} is there with other rows: replace it with --overwrite, or write elsewhere.")
    write_atomically(output, content)
    print("\n".join([f"{output}: {many(len(rows), 'caption')}", *said]))
    print(
        f"Train on them with data=tsv data.train={output.name} control=tags tokenizer=mixed, or another for one script."
    )
