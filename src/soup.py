"""Average captioners' weights into one captioner: `python -m src.soup runs/A runs/B -o FOLDER`."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from src.bundle import Bundle, check_new, load_bundle, save_bundle

ALIKE = ("transform", "tokenizer", "defence", "encoder", "embedding", "attention", "decoder", "latent", "matcher")
"""Parts that must be set the same way; the search and what is asked for by default are the first's."""
LEARNING = {"weights", "frozen", "unfreeze_epoch", "learning_rate", "batch_norm", "dropout", "augment"}
"""Their fields that say how a part was trained, not what it is."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.soup",
        description="Average the weights of captioners that began from one another, or from a common start, into one: "
        "as fast as each of them, often better than any. Model soups: Wortsman et al., 2022, "
        "https://arxiv.org/abs/2203.05482; of a captioner and what it was fine-tuned from: "
        "https://arxiv.org/abs/2109.01903. Captioners of different random starts average to nonsense: caption with "
        "those as an ensemble.",
    )
    result.add_argument(
        "models", nargs="+", type=Path, metavar="MODEL", help="a bundle/ directory, a run's folder, or a .ckpt"
    )
    result.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the new bundle")
    result.add_argument(
        "--weights",
        nargs="+",
        type=float,
        metavar="W",
        help="how much of each, in order; they are scaled to sum to 1 (default: as much of each)",
    )
    result.add_argument("--overwrite", action="store_true", help="replace a bundle that is there already")
    return result


def soup(models: Sequence[Path], weights: Sequence[float] | None = None) -> Bundle:
    """The weighted mean of captioners' weights; all else is the first's, but for its calibration and its detector,
    which are of other weights, and for a matcher that not all of them have.

    Args:
        models: bundles, runs or checkpoints: two or more of one vocabulary and one build.
        weights: how much of each, 0 or more, not all 0; None: as much of each.

    Raises:
        ValueError: too few, captioners that do not fit each other, or weights that cannot be.
        BundleError: one that cannot be read.
    """
    if len(models) < 2:
        raise ValueError("an average is of two captioners or more")
    shares = list(weights) if weights is not None else [1.0] * len(models)
    total = sum(shares)
    if len(shares) != len(models) or min(shares) < 0 or not 0 < total < math.inf:
        raise ValueError(f"--weights {shares}: {len(models)} are wanted, one a captioner, 0 or more, not all 0")
    shares = [share / total for share in shares]
    first = load_bundle(models[0])
    own = first.model.state_dict()
    mean = {name: tensor.double() * shares[0] for name, tensor in own.items() if tensor.is_floating_point()}
    for path, share in zip(models[1:], shares[1:], strict=True):
        other = load_bundle(path)
        if unlike := _unlike(first, other):
            raise ValueError(
                f"{path} is not built as {models[0]} is: {unlike}; caption with both as an ensemble instead"
            )
        state = other.model.state_dict()
        if other.model.matcher is None and first.model.matcher is not None:  # fine-tuning keeps none
            first.model.matcher = None
            first = first._replace(config={**first.config, "matcher": None}, matching=None)
            mean = {name: mean[name] for name in first.model.state_dict() if name in mean}
        for name, tensor in mean.items():
            tensor += state[name].double() * share
    first.model.load_state_dict({name: tensor.float() for name, tensor in mean.items()}, strict=False)
    names = [f"{share:.3g} of {path}" for path, share in zip(models, shares, strict=True)]
    about = {**first.config["provenance"], "averaged": ", ".join(names)}
    return first._replace(config={**first.config, "provenance": about}, calibration=None, detector=None)


def _unlike(first: Bundle, other: Bundle) -> str | None:
    """What keeps two captioners' weights from being averaged."""
    if other.vocabulary.words != first.vocabulary.words:
        return f"its vocabulary is another, of {len(other.vocabulary)} words, not {len(first.vocabulary)}"
    both = first.model.matcher is not None and other.model.matcher is not None
    parts = [part for part in ALIKE if both or part != "matcher"]
    differences = (_difference(part, first.config[part], other.config[part]) for part in parts)
    return next(filter(None, differences), None)


def _difference(name: str, first: object, other: object) -> str | None:
    """The first field that says what a part is and differs, as a clause on the other captioner."""
    if isinstance(first, dict) and isinstance(other, dict):
        fields = sorted((first.keys() | other.keys()) - LEARNING)
        differences = (_difference(f"{name}.{field}", first.get(field), other.get(field)) for field in fields)
        return next(filter(None, differences), None)
    return None if first == other else f"its {name} is {other}, not {first}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    options = parser().parse_args(arguments)
    try:
        check_new(options.output, options.overwrite)
        made = soup(options.models, options.weights)
        save_bundle(options.output, made)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {made.config['provenance']['averaged']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
