"""Make a captioner small: `python -m src.quantize runs/NAME -o FOLDER`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from src.bundle import check_new, load_bundle, save_bundle
from src.weights import STORAGES


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.quantize",
        description="Write a captioner's bundle with its weights in eight bits, or as halves. It captions as before, "
        "in the precision of the machine; `python -m src.evaluate` of both says what that costs in score.",
    )
    result.add_argument("model", type=Path, help="a bundle/ directory, a run's folder, or a .ckpt")
    result.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the new bundle")
    result.add_argument("--storage", choices=STORAGES, default="int8", help="of the weights (%(default)s)")
    result.add_argument(
        "--card", type=Path, metavar="FILE.md", help="what else the model card says, behind the usual lines"
    )
    result.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    options = parser().parse_args(arguments)
    try:
        check_new(options.output, options.overwrite)
        if options.card and not options.card.is_file():
            raise ValueError(f"--card {options.card}: no such file")
        card = options.card.read_text(encoding="utf-8") if options.card else ""
        bundle = load_bundle(options.model)
        save_bundle(options.output, bundle, storage=options.storage, card=card)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"{options.output}: {size / 1e6:.1f} MB, {sum(p.numel() for p in bundle.model.parameters()):,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
