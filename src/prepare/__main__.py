"""`python -m src.prepare NAME …`: one subcommand a data set.

A data set, or what belongs to one (regions), is a module with `register(subparsers)`, which adds its parser and
sets `run`, a function of the parsed arguments. It raises OSError, ValueError or ImportError for what the user can mend.
"""

import argparse
import sys
from collections.abc import Sequence

from src.prepare import coco, flickr8k, flickr30k, karpathy, regions, scenes, shards, tagged

DATA_SETS = (scenes, flickr8k, flickr30k, coco, karpathy, regions, tagged, shards)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m src.prepare", description="Make a data set in the TSV form.")
    subparsers = parser.add_subparsers(title="data sets", metavar="NAME", required=True)
    for data_set in DATA_SETS:
        data_set.register(subparsers)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; nothing was kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
