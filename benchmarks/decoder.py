"""How fast the attention decoder trains and searches beside the textbook's: `python -m benchmarks.decoder`.

Captions of twelve words from given regions, five an image; a beam of five, forced to as many steps. A training step is
a whole one: gradients zeroed, forward, backward, clipped, optimizer. First it is checked that both are the same
function. Then, by turns: the textbook's (`benchmarks/textbook.py`: 32 captions a step, one picture a search); ours as
conf/ has it (regions projected to the decoder's width, bf16 where the hardware has it); ours as the same function as
the textbook's (regions as they come); and Hugging Face `generate` where it is installed. Ours take their best batch.
Besides: a step over its own matrix products alone, a search over its own decoder steps alone, and peak memory, each in
a fresh process. Prints a table, and writes JSON with --output. Wants a quiet machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from benchmarks import huggingface
from benchmarks.measuring import Row, alternate, machine, peak_mb, spread, table, use_cores, warn_unless_quiet
from benchmarks.products import record
from benchmarks.textbook import Textbook
from src.config import ROOT, autocast_dtype, precision
from src.data.module import Batch
from src.data.tokenizer import EnglishTokenizer
from src.data.vocabulary import BOS, EOS, PAD, SPECIALS, Vocabulary
from src.encoders.base import Backbone, Features, Stage, grid_boxes
from src.generation import BeamSearch
from src.model import CaptioningModel, instantiate
from src.training import CaptioningModule

WORDS, CAPTIONS, BEAMS = 12, 5, 5
"""Words a caption, captions an image, beams."""


class Setting(NamedTuple):
    """Sizes, and what is asked for: the least ratios to the textbook, and the ratios aimed at."""

    regions: int
    width: int
    vocabulary: int
    floors: dict[str, float] = {}
    aims: dict[str, float] = {}
    hidden: int = 512
    captions: int = 32
    """A training step of the textbook's, and pictures of a search with `generate`."""
    pictures: int = 4
    """That the textbook searches, one by one, a reading."""
    batches: tuple[int, ...] = (32, 64, 128)
    """Images of a training step or search of ours, of which the best counts."""


SETTINGS = {
    "196x2048": Setting(196, 2048, 10_000, {"train": 10, "beam": 20}, {"train": 15, "beam": 50}),
    "49x1280": Setting(49, 1280, 3_000, {"train": 5, "beam": 16}, {"train": 10, "beam": 30}),
}
QUICK = {"quick": Setting(4, 16, 30, hidden=16, captions=4, pictures=1, batches=(1, 2))}
STEP_LIMIT, BEAM_LIMIT = 2.0, 1.3
"""Most times its own matrix products that a training step, and its own decoder steps that a search may take."""


class Trial(NamedTuple):
    """Something to time."""

    run: Callable[[], Any]
    captions: int
    """That a call trains or finds."""
    batch: int
    """Captions a step or pictures a search."""


# ---------------------------------------------------------------- ours


def conf(group: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "conf" / f"{group}.yaml").read_text(encoding="utf-8"))


class Given(Backbone):
    """Stands for a frozen backbone whose output is cached."""

    def __init__(self, width: int) -> None:
        super().__init__((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.width, self.identity = width, nn.Identity()

    @property
    def stages(self) -> list[Stage]:
        return [Stage("given", [self.identity])]


class Ours:
    """The captioner as conf/ has it, but for its sizes.

    Args:
        setting: the sizes.
        arithmetic: Lightning's name of the precision.
        projected: False leaves the encoder's neck out, and the decoder sees regions as the textbook's does.
        decoder: which of conf/decoder.
    """

    def __init__(
        self, setting: Setting, arithmetic: str = "auto", projected: bool = True, decoder: str = "lstm_attn"
    ) -> None:
        torch.manual_seed(0)
        words = [*SPECIALS, *(f"word{number}" for number in range(setting.vocabulary - len(SPECIALS)))]
        vocabulary, hidden, self.projected = Vocabulary(words, [0] * len(words)), setting.hidden, projected
        width = hidden if projected else setting.width
        neck = {**conf("encoder/efficientnet_lite0"), "width": hidden if projected else None}
        del neck["backbone"]
        embedding = instantiate({**conf("embedding/learned"), "size": hidden}, vocabulary=vocabulary)
        given = {"embedding": embedding, "memory_width": width}
        if decoder == "lstm_attn":
            attention = {**conf("attention/additive"), "width": hidden}
            given["attention"] = instantiate(attention, query_width=hidden, memory_width=width)
        made = instantiate({**conf(f"decoder/{decoder}"), "hidden": hidden}, **given)
        self.model = CaptioningModel(instantiate(neck, backbone=Given(setting.width)), made)
        self.objective = instantiate(conf("objective/cross_entropy"))
        self.search = BeamSearch(BEAMS, length_penalty=0.0, min_length=WORDS, max_length=WORDS)
        training = CaptioningModule(
            self.model, vocabulary, EnglishTokenizer(), self.objective, self.search, conf("optimizer/adamw")
        )
        self.optimizer = training.configure_optimizers()
        self.clip = conf("trainer/default")["gradient_clip_val"]
        self.dtype = autocast_dtype(precision(arithmetic, "cpu"))

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", self.dtype, enabled=self.dtype is not None)

    def seen(self, regions: Tensor) -> Tensor | Features:
        """Cached regions (B, R, D) as the model takes them: through the neck, or past it."""
        if self.projected:
            return regions
        grid, mask = regions.float(), torch.ones(regions.shape[:2], dtype=torch.bool)
        side = int(regions.size(1) ** 0.5)
        return Features(grid, grid.mean(1), grid_boxes(side, side).expand(len(grid), -1, -1), mask)

    def batch(self, regions: Tensor, tokens: Tensor) -> Batch:
        """Cached regions (B, R, D) with tokens (B, Q, T)."""
        prefix = torch.ones(tokens.shape[:2], dtype=torch.long)
        return Batch(self.seen(regions), torch.arange(len(regions)), tokens, tokens != PAD, prefix, [])

    def step(self, regions: Tensor, tokens: Tensor) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.objective(self.model, self.batch(regions, tokens))
        (loss.total / loss.count).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    @torch.no_grad()
    def memory(self, regions: Tensor) -> Any:
        with self.autocast():
            return self.model.memory(self.seen(regions))

    @torch.no_grad()
    def found(self, memory: Any) -> Tensor:
        """The likeliest captions (B, T) by beam search."""
        with self.autocast():
            return self.search(self.model.decoder, memory).tokens[:, 0]

    def decoder_calls(self, memory: Any) -> Callable[[], None]:
        """What a search asks of the decoder, to be asked again without the search: the same calls on the same
        tensors."""
        decoder, calls = self.model.decoder, []
        names = ("embed", "step", "logits")

        def recorded(name: str) -> Callable[..., Any]:
            method = getattr(decoder, name)

            def call(*arguments: Any) -> Any:
                calls.append((method, arguments))
                return method(*arguments)

            return call

        for name in names:
            setattr(decoder, name, recorded(name))
        try:
            self.found(memory)
        finally:
            for name in names:
                delattr(decoder, name)

        @torch.no_grad()
        def again() -> None:
            with self.autocast():
                for method, arguments in calls:
                    method(*arguments)

        return again


# ---------------------------------------------------------------- what is timed


def regions_and_tokens(setting: Setting, images: int, captions: int, length: int = WORDS) -> tuple[Tensor, Tensor]:
    """Random regions (B, R, D) as the cache holds them, and captions (B, Q, T) of so many words."""
    generator = torch.Generator().manual_seed(1)
    regions = torch.rand(images, setting.regions, setting.width, dtype=torch.float16, generator=generator)
    words = torch.randint(len(SPECIALS), setting.vocabulary, (images, captions, length), generator=generator)
    ends = torch.ones(images, captions, 1, dtype=torch.long)
    return regions, torch.cat([BOS * ends, words, EOS * ends], -1)


def textbook_training(setting: Setting, arithmetic: str, batch: int) -> Trial:
    """In float32, whatever the precision; the regions' copies for every caption are made before, at no cost."""
    torch.manual_seed(0)
    model = Textbook(setting.vocabulary, setting.width, setting.hidden)
    given = conf("optimizer/adamw")
    optimizer = torch.optim.AdamW(
        model.parameters(), given["lr"], betas=given["betas"], weight_decay=given["weight_decay"]
    )
    smoothing, clip = conf("objective/cross_entropy")["label_smoothing"], conf("trainer/default")["gradient_clip_val"]
    regions, tokens = regions_and_tokens(setting, batch, 1)
    regions, tokens = regions.float(), tokens.squeeze(1)

    def step() -> None:
        optimizer.zero_grad()
        model.loss(regions, tokens, smoothing).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    return Trial(step, batch, batch)


def textbook_search(setting: Setting, arithmetic: str, batch: int) -> Trial:
    torch.manual_seed(0)
    model = Textbook(setting.vocabulary, setting.width, setting.hidden).eval()
    regions, _ = regions_and_tokens(setting, setting.pictures, 1)
    pictures = regions.float().split(1)
    return Trial(lambda: [model.caption(each, BEAMS, WORDS) for each in pictures], len(pictures), 1)


def our_training(setting: Setting, arithmetic: str, batch: int, projected: bool = True) -> Trial:
    ours = Ours(setting, arithmetic, projected)
    data = regions_and_tokens(setting, batch, CAPTIONS)
    return Trial(lambda: ours.step(*data), batch * CAPTIONS, batch * CAPTIONS)


def our_search(setting: Setting, arithmetic: str, batch: int, projected: bool = True) -> Trial:
    ours = Ours(setting, arithmetic, projected)
    ours.model.eval()
    regions, _ = regions_and_tokens(setting, batch, 1)
    return Trial(lambda: ours.found(ours.memory(regions)), batch, batch)


def our_transformer(setting: Setting, arithmetic: str, batch: int) -> Trial:
    """Of `generate`'s sizes: as wide, as deep, as many heads, words and steps, and as many pictures at a time."""
    ours = Ours(setting, arithmetic, decoder="transformer")
    ours.model.eval()
    regions, _ = regions_and_tokens(setting, batch, 1)
    return Trial(lambda: ours.found(ours.memory(regions)), batch, batch)


def generate(setting: Setting, arithmetic: str, batch: int) -> Trial:
    torch.manual_seed(0)
    dtype = autocast_dtype(precision(arithmetic, "cpu"))
    run = huggingface.generator(setting.width, setting.vocabulary, setting.hidden, BEAMS, WORDS, dtype)
    regions, _ = regions_and_tokens(setting, batch, 1)
    return Trial(lambda: run(regions), batch, batch)


def _unprojected(make: Callable[..., Trial]) -> Callable[..., Trial]:
    return lambda setting, arithmetic, batch: make(setting, arithmetic, batch, projected=False)


WAYS: dict[str, dict[str, Callable[[Setting, str, int], Trial]]] = {
    "train": {"textbook": textbook_training, "ours": our_training, "same function": _unprojected(our_training)},
    "beam": {"textbook": textbook_search, "ours": our_search, "same function": _unprojected(our_search)},
}
if huggingface.installed():
    WAYS["beam"] |= {"transformer": our_transformer, "generate": generate}
BASELINES = ("textbook", "transformer", "generate")
"""Those whose batch is given; `generate` is given ours's precision, which is faster than float32."""
GENERATE_FLOOR = 2.0
"""The least ratio of our transformer's beam to `generate`."""


# ---------------------------------------------------------------- measuring


def check_equal(setting: Setting, tolerance: float = 1e-4) -> dict[str, float]:
    """Hold ours, without the neck and in float32, against the textbook's with the same weights.

    Raises:
        AssertionError: logits, a loss or captions differ.
    """
    ours = Ours(setting, "32", projected=False)
    ours.model.eval()
    decoder = ours.model.decoder
    with torch.no_grad():
        decoder.classifier.weight *= 4  # sharper than at random, so that no two captions are as likely
    plain = Textbook(setting.vocabulary, setting.width, setting.hidden).eval()
    plain.load_from(decoder)  # type: ignore[arg-type]
    regions, tokens = regions_and_tokens(setting, 2, CAPTIONS)
    copies, flat = regions.float().repeat_interleave(CAPTIONS, 0), tokens.flatten(0, 1)
    with torch.no_grad():
        output = decoder(decoder.embed(tokens[..., :-1]), ours.memory(regions))
        logits = (decoder.logits(output.hidden).flatten(0, 1) - plain(copies, flat)).abs().max().item()
        sums = ours.objective(ours.model, ours.batch(regions, tokens))
        loss = sums.total / sums.count - plain.loss(copies, flat, ours.objective.label_smoothing)
    found = ours.found(ours.memory(regions))[:, :WORDS].tolist()
    expected = [plain.caption(each, BEAMS, WORDS) for each in regions.float().split(1)]
    differences = {"logits": logits, "loss": loss.abs().item()}
    for name, difference in differences.items():
        assert difference <= tolerance, f"the {name} of ours and the textbook's differ by {difference:g}"
    assert found == expected, f"the captions of ours and the textbook's differ: {found}, {expected}"
    return {**differences, "captions": len(found)}


def best_batch(make: Callable[[Setting, str, int], Trial], setting: Setting, arithmetic: str) -> Trial:
    """The trial of the batch that is fastest; one reading of each after a warm-up."""

    def rate(batch: int) -> float:
        trial = make(setting, arithmetic, batch)
        return trial.captions / alternate({"": trial.run}, 1)[""][0]

    return make(setting, arithmetic, max(setting.batches, key=rate))


def peak(name: str, task: str, way: str, batch: int, arithmetic: str) -> float | None:
    """MB that a way takes, measured by a fresh process."""
    here = [sys.executable, "-m", "benchmarks.decoder", "--cores", str(torch.get_num_threads())]
    asked = ["--setting", name, "--precision", arithmetic, "--peak", task, way, str(batch)]
    done = subprocess.run([*here, *asked], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {task}, {way} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, repeats: int = 5, arithmetic: str = "auto", memory: bool = True) -> dict[str, Any]:
    """All figures of a setting.

    Returns:
        train, beam: by way, captions/s and, for ours and the same function, the ratio of its median to the textbook's;
        step, search: seconds of ours, of what it is held against, and their ratio; equality: what differed at most.
    """
    setting = (SETTINGS | QUICK)[name]
    sizes = {k: v for k, v in setting._asdict().items() if k not in ("floors", "aims")}
    result: dict[str, Any] = {"setting": sizes, "equality": check_equal(setting)}
    best = {}
    for task, ways in WAYS.items():
        trials = {
            way: make(setting, arithmetic, setting.captions)
            if way in BASELINES
            else best_batch(make, setting, arithmetic)
            for way, make in ways.items()
        }
        seconds = alternate({way: trial.run for way, trial in trials.items()}, repeats)
        rows: dict[str, dict[str, Any]] = {
            way: {
                "captions/s": spread([trial.captions / each for each in seconds[way]]),
                "batch": trial.batch,
                "peak_mb": peak(name, task, way, _images(task, way, trial.batch), arithmetic) if memory else None,
            }
            for way, trial in trials.items()
        }
        for row in rows.values():
            row["ratio"] = row["captions/s"]["median"] / rows["textbook"]["captions/s"]["median"]
        result[task], best[task] = rows, _images(task, "ours", trials["ours"].batch)
        del trials
    result["step"] = _step_and_products(setting, best["train"], repeats, arithmetic)
    result["search"] = _search_and_steps(setting, best["beam"], repeats, arithmetic)
    return result


def _images(task: str, way: str, batch: int) -> int:
    """The batch as `WAYS` takes it: ours come in images, of which each has its captions."""
    return batch // CAPTIONS if task == "train" and way not in BASELINES else batch


def _step_and_products(setting: Setting, batch: int, repeats: int, arithmetic: str) -> dict[str, Any]:
    step = our_training(setting, arithmetic, batch).run
    step()
    products = record(step)
    about = {"batch": batch * CAPTIONS, "products": len(products.calls), "gflop": products.flops / 1e9}
    return about | _held_against({"step": step, "alone": products.replay()}, repeats)


def _search_and_steps(setting: Setting, batch: int, repeats: int, arithmetic: str) -> dict[str, Any]:
    ours = Ours(setting, arithmetic)
    ours.model.eval()
    regions, _ = regions_and_tokens(setting, batch, 1)
    memory = ours.memory(regions)
    ways = {"search": lambda: ours.found(memory), "alone": ours.decoder_calls(memory)}
    return {"batch": batch} | _held_against(ways, repeats)


def _held_against(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    seconds = alternate(ways, repeats)
    whole, alone = (statistics.median(each) for each in seconds.values())
    return {f"{way}_s": spread(each) for way, each in seconds.items()} | {"ratio": whole / alone}


def profile(setting: Setting, arithmetic: str, images: int = 64) -> str:
    """Where a training step and a search spend their time: each operation's own share, largest first."""
    lines = []
    for title, trial in (
        ("a training step", our_training(setting, arithmetic, images)),
        ("a search", our_search(setting, arithmetic, images)),
    ):
        for _ in range(3):
            trial.run()
        with torch.profiler.profile() as recorded:
            trial.run()
        spent = {each.key: (each.self_cpu_time_total / 1000, each.count) for each in recorded.key_averages()}
        total = sum(milliseconds for milliseconds, _ in spent.values())
        lines.append(f"{title}, {trial.captions} captions, {total:.0f} ms")
        for key, (milliseconds, calls) in sorted(spent.items(), key=lambda item: -item[1][0]):
            if milliseconds >= 0.01 * total:
                lines.append(f"  {milliseconds / total:6.1%}  {key}, {calls} calls")
    return "\n".join(lines)


def rows(name: str, measured: dict[str, Any]) -> list[Row]:
    """A setting's lines of the table."""
    setting = (SETTINGS | QUICK)[name]
    size = f"{setting.regions} × {setting.width}, {setting.vocabulary:,} words"

    def rate(row: dict[str, Any]) -> str:
        memory = "" if row["peak_mb"] is None else f", {row['peak_mb']:,.0f} MB"
        return f"{row['captions/s']['median']:.1f}/s ({row['batch']}{memory})"

    found = []
    for task, title in (("train", "training"), ("beam", f"beam {BEAMS}")):
        ways = measured[task]
        goals = (setting.floors.get(task), setting.aims.get(task))
        plain, ours = rate(ways["textbook"]), ways["ours"]
        found.append(Row(f"{title}, {size}", rate(ours), plain, ours["ratio"], *goals))
        found.append(Row("  the same function", rate(ways["same function"]), plain, ways["same function"]["ratio"]))
    ours, generated = measured["beam"]["ours"], measured["beam"].get("generate")
    theirs = rate(generated) if generated else huggingface.MISSING
    ratio = ours["ratio"] / generated["ratio"] if generated else None
    found.append(Row("  beside Hugging Face generate", rate(ours), theirs, ratio))
    if generated:
        same = measured["beam"]["transformer"]
        ratio = same["ratio"] / generated["ratio"]
        found.append(Row("  decoder=transformer beside it, equal sizes", rate(same), theirs, ratio, GENERATE_FLOOR))
    for part, title, limit in (
        ("step", "a training step over its matrix products", STEP_LIMIT),
        ("search", "a search over its decoder steps", BEAM_LIMIT),
    ):
        whole, alone = (f"{measured[part][f'{way}_s']['median']:.3g} s" for way in (part, "alone"))
        found.append(Row(f"  {title}", whole, alone, measured[part]["ratio"], limit, at_most=True))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoder", description=__doc__.split("\n\n")[0])
    parser.add_argument("--setting", choices=[*SETTINGS, *QUICK], help="only this one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; memory is left out")
    parser.add_argument("--repeats", type=int, default=5, help="readings of each (%(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="that all may use (%(default)s)")
    parser.add_argument("--precision", default="auto", help="of ours: 32-true, bf16-mixed (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="only print where a step and a search spend their time")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--peak", nargs=3, metavar=("TASK", "WAY", "BATCH"), help="only print this one's MB")
    options = parser.parse_args(arguments)
    use_cores(options.cores)
    described = machine(options.precision)
    if options.peak:
        task, way, batch = options.peak
        trial = WAYS[task][way]((SETTINGS | QUICK)[options.setting], options.precision, int(batch))
        print(json.dumps(peak_mb(trial.run)))
        return 0
    warn_unless_quiet(described)
    names = ["quick"] if options.quick else [options.setting] if options.setting else list(SETTINGS)
    if options.profile:
        for name in names:
            print(f"{name}: {profile((SETTINGS | QUICK)[name], options.precision)}")
        return 0
    measured = {}
    for name in names:
        measured[name] = measure(name, options.repeats, options.precision, memory=not options.quick)
        print(table(rows(name, measured[name])), flush=True)
    print("captions/s as medians; in brackets the batch, and what a first call takes of memory above what was there")
    if options.output:
        options.output.write_text(json.dumps({"machine": described, "decoder": measured}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
