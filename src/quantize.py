"""Make a captioner small: `python -m src.quantize runs/NAME -o FOLDER`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from src.bundle import WEIGHTS, Bundle, bundle_folder, check_new, load_bundle, save_bundle
from src.data.features import state_digest
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
    result.add_argument(
        "--matcher",
        type=Path,
        metavar="RUN",
        help="with the matcher of another, one that was trained beside this very captioner, by objective=contrastive "
        "with objective.caption_weight=0",
    )
    result.add_argument("--storage", choices=STORAGES, default="int8", help="of the weights (%(default)s)")
    result.add_argument(
        "--card", type=Path, metavar="FILE.md", help="what else the model card says, behind the usual lines"
    )
    result.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    return result


def as_stored(path: Path, bundle: Bundle, storage: str) -> dict[str, Tensor]:
    """The weights of a bundle that is stored in the wanted way already: what is stored anew could differ by a rounding.
    Of another, none."""
    if not path.is_dir() or bundle.config["provenance"].get("stored_as", "float32") != storage:
        return {}
    return load_file(bundle_folder(path) / WEIGHTS)


def with_matcher(bundle: Bundle, path: Path) -> Bundle:
    """A captioner with the matcher of another bundle, run or checkpoint.

    Raises:
        ValueError: that has none, or one that was trained beside other weights or words.
    """
    other = load_bundle(path)
    if other.model.matcher is None:
        raise ValueError(f"--matcher {path}: it has none; objective=contrastive trains one")
    same = state_digest(other.model.encoder) == state_digest(bundle.model.encoder)
    if not same or other.vocabulary.words != bundle.vocabulary.words:
        what = "its encoder is another" if not same else "its vocabulary is another"
        raise ValueError(
            f"--matcher {path}: it fits another captioner ({what}): train one with init=CAPTIONER and "
            "objective.caption_weight=0"
        )
    bundle.model.matcher = other.model.matcher
    return bundle._replace(config={**bundle.config, "matcher": other.config["matcher"]}, matching=other.matching)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    options = parser().parse_args(arguments)
    try:
        check_new(options.output, options.overwrite)
        if options.card and not options.card.is_file():
            raise ValueError(f"--card {options.card}: no such file")
        card = options.card.read_text(encoding="utf-8") if options.card else ""
        bundle = load_bundle(options.model)
        kept = as_stored(options.model, bundle, options.storage)
        if options.matcher:
            bundle = with_matcher(bundle, options.matcher)
            kept = {name: tensor for name, tensor in kept.items() if not name.startswith("matcher.")}
        save_bundle(options.output, bundle, storage=options.storage, card=card, kept=kept)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"{options.output}: {size / 1e6:.1f} MB, {sum(p.numel() for p in bundle.model.parameters()):,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
