"""What share of a self-critical step its rewards take: `python -m benchmarks.rewards`.

Steps of `objective=self_critical` as conf/ has it, of 32 pictures and five drawn captions each, and inside them the
CIDEr-D (and BLEU-4) of these captions against five references a picture, by document frequencies of 1,000 pictures.
Words are drawn at random, so that captions run to their greatest length. Wants a quiet machine.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.decoder import CAPTIONS, QUICK, SETTINGS, WORDS, Ours, Setting, regions_and_tokens
from benchmarks.measuring import Row, machine, spread, table, use_cores, warn_unless_quiet
from src.data.tokenizer import EnglishTokenizer
from src.metrics.cider import CiderD, DocumentFrequencies
from src.objectives import SelfCritical

IMAGES, DOCUMENTS = 32, 1000
LIMIT = 0.1
"""The largest share that rewards may take."""


def references(words: Sequence[str], images: int) -> list[list[str]]:
    """Captions of random words, few of them often and most seldom, as in any language."""
    generator = torch.Generator().manual_seed(2)
    chances = 1.0 / torch.arange(1, len(words) + 1)
    drawn = torch.multinomial(chances.expand(images * CAPTIONS, -1), WORDS, replacement=True, generator=generator)
    captions = [" ".join(words[i] for i in row) for row in drawn.tolist()]
    return [captions[i : i + CAPTIONS] for i in range(0, len(captions), CAPTIONS)]


def measure(setting: Setting, repeats: int, **options: Any) -> dict[str, Any]:
    """Seconds of steps, of the rewards within them, and the rewards' share of all."""
    ours = Ours(setting)
    objective = SelfCritical(from_random=True, **options).train()
    words = ours.model.decoder.embedding.vocabulary
    objective.vocabulary, objective.tokenizer = words, EnglishTokenizer()
    every = references(words.words[4:], DOCUMENTS)
    objective.scorer = CiderD({}, DocumentFrequencies.of([objective._words(group) for group in every]))
    ours.objective, inside = objective, []
    reward = objective.reward

    def timed(*arguments: Any) -> torch.Tensor:
        start = time.perf_counter()
        found = reward(*arguments)
        inside[-1] += time.perf_counter() - start
        return found

    objective.reward = timed  # type: ignore[method-assign]
    regions, tokens = regions_and_tokens(setting, IMAGES, CAPTIONS)
    batch = ours.batch
    ours.batch = lambda *given: batch(*given)._replace(references=every[:IMAGES])  # type: ignore[method-assign]
    steps = []
    for _ in range(repeats + 1):  # the first warms up
        inside.append(0.0)
        start = time.perf_counter()
        ours.step(regions, tokens)
        steps.append(time.perf_counter() - start)
    return {"step": spread(steps[1:]), "rewards": spread(inside[1:]), "share": sum(inside[1:]) / sum(steps[1:])}


def rows(measured: dict[str, dict[str, Any]]) -> list[Row]:
    """Lines of the table."""
    return [
        Row(
            f"rewards within a self-critical step, {name}",
            f"{1000 * each['rewards']['median']:.0f} ms",
            f"{1000 * each['step']['median']:.0f} ms",
            each["share"],
            LIMIT,
            at_most=True,
        )
        for name, each in measured.items()
    ]


def every_mix(setting: Setting, repeats: int) -> dict[str, dict[str, Any]]:
    """CIDEr-D alone, and with BLEU-4."""
    return {"CIDEr-D": measure(setting, repeats), "CIDEr-D and BLEU-4": measure(setting, repeats, bleu=1.0)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewards", description=__doc__.split("\n\n")[0])
    parser.add_argument("--setting", choices=[*SETTINGS, *QUICK], default="49x1280", help="sizes (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="readings of each (%(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="that all may use (%(default)s)")
    options = parser.parse_args(arguments)
    use_cores(options.cores)
    warn_unless_quiet(machine())
    print(table(rows(every_mix((SETTINGS | QUICK)[options.setting], options.repeats))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
