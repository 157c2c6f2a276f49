"""What tests/test_distributed.py trains in one process, and in two:
`python -m torch.distributed.run --nproc-per-node 2 -m tests.several SHAPES OUTPUT CASE …`."""

import copy
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytorch_lightning as lightning
import torch

from src.averaging import MovingAverage
from src.data.module import CaptionData
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess
from src.decoders.latent import Gaussian
from src.distributed import place
from src.generation import BeamSearch, SampleSearch
from src.model import build
from src.objectives import Adversarial, Contrastive, CrossEntropy, Objective, SelfCritical, Variational
from src.overfitting import OverfittingGuard
from src.strategies import DataParallel, FullySharded, trainer_arguments, whole
from src.training import CaptioningModule, ShardedCaptioningModule
from tests.conftest import tiny_config


class Case(NamedTuple):
    """A training of 2 epochs, of `batch` pictures a step over all processes."""

    objective: Objective = CrossEntropy(0.1)
    decoder: str = "lstm_attn"
    attention: str = "additive"
    config: dict[str, Any] = {}
    train: int = 16
    """How many of the sixteen training pictures."""
    val: int = 4
    batch: int = 4
    accumulate: int = 1
    averaged: bool = False
    precision: str = "32-true"
    sharded: bool = False
    clip: float = 0.1
    equal: bool = True
    """Whether two processes are to end as one does, or only as each other."""


LEARNING = {"encoder__frozen": False, "encoder__batch_norm": "learn"}
WAKING = {"encoder__frozen": 1, "encoder__batch_norm": "keep", "encoder__unfreeze_epoch": 1}
CASES = {
    "lstm_attn": Case(),
    "transformer": Case(decoder="transformer", attention="dot"),
    "lstm_whole_encoder": Case(decoder="lstm", config=LEARNING),
    "attention_penalty": Case(CrossEntropy(0.1, attention_penalty=1.0)),
    "waking": Case(config=WAKING),
    "accumulated": Case(accumulate=2, batch=2),
    "averaged": Case(averaged=True, config=LEARNING),
    "uneven": Case(val=3),
    "fewer_than_processes": Case(val=1),
    "odd": Case(train=15, equal=False),  # all processes take as many pictures: one is left for another epoch
    "self_critical": Case(SelfCritical(samples=3, max_length=6, from_random=True)),
    "variational": Case(Variational(word_dropout=0.0, hidden=8), config={"latent": True}),
    "contrastive": Case(
        Contrastive(hard_weight=1.0), config={"matcher": True}, equal=False
    ),  # negatives are of a process
    "sharded_contrastive": Case(Contrastive(caption_weight=0.0), config={"matcher": True}, sharded=True, equal=False),
    "adversarial": Case(Adversarial(hidden=8, max_length=6, from_random=True), equal=False),
    "adversarial_policy": Case(
        Adversarial("policy", hidden=8, max_length=6, from_random=True), decoder="transformer", equal=False
    ),
    "scheduled_sampling": Case(CrossEntropy(scheduled_sampling=0.5), equal=False),
    "hard": Case(attention="hard", equal=False),
    "bf16": Case(precision="bf16-mixed", equal=False),
    "sharded": Case(sharded=True, config=LEARNING),
    "sharded_transformer": Case(decoder="transformer", attention="dot", sharded=True, accumulate=2, batch=2),
    "sharded_self_critical": Case(SelfCritical(samples=3, max_length=6, from_random=True), sharded=True, val=1),
    "sharded_waking": Case(config=WAKING, sharded=True),
    "sharded_bf16": Case(precision="bf16-mixed", sharded=True, equal=False),
}
if not hasattr(torch.cpu.Stream, "record_event"):  # old torch shards no gradients on CPUs
    CASES = {name: case for name, case in CASES.items() if not case.sharded}


class KthBest:
    """In place of what is drawn, which is drawn anew in each process: of K samples, the k-th takes the k-th likeliest
    word each time."""

    @staticmethod
    def choose(self: SampleSearch, log_probs: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        ranked = log_probs.topk(log_probs.size(1), dim=-1).indices
        return ranked.diagonal(dim1=1, dim2=2)


def trained(case: Case, shapes: Path, folder: Path, world: int) -> dict[str, Any]:
    """What a training ends with in this process: weights, scores, and the keys of its checkpoint."""
    tables = {}
    for name, count in (("train", case.train), ("val", case.val)):
        rows = (shapes / f"{name}.tsv").read_text().splitlines()[: 2 * count]
        tables[name] = str(folder / f"{name}-{count}-{place().rank}.tsv")
        Path(tables[name]).write_text("\n".join(rows) + "\n")
    torch.manual_seed(3)
    data = CaptionData(
        shapes,
        Preprocess(16),
        EnglishTokenizer(),
        min_count=1,
        batch_size=case.batch // world,
        cache_dir=folder / f"cache{place().rank}",
        **tables,
    )
    fields = dict(case.config)
    latent, matcher = fields.pop("latent", False), fields.pop("matcher", False)
    config = tiny_config(case.decoder, case.attention, decoder__dropout=0.0, **({"encoder__frozen": True} | fields))
    if latent:
        config["latent"] = {"_target_": "src.decoders.latent.GaussianLatent", "size": 4, "hidden": 8}
    if matcher:
        config["matcher"] = {"_target_": "src.matcher.JointMatcher", "size": 8, "words": 6, "hidden": 5, "heads": 2}
    model = build(config, data.vocabulary)
    objective = copy.deepcopy(case.objective)
    objective.begin(model, data)
    kind = ShardedCaptioningModule if case.sharded and world > 1 else CaptioningModule
    module = kind(
        model,
        data.vocabulary,
        data.tokenizer,
        objective,
        BeamSearch(2, max_length=8),
        {"_target_": "torch.optim.AdamW", "lr": 0.01, "eps": 1e-3},
        None,
        data.images("val").captions,
        config=config,
    )
    strategy: Any = "auto"
    if world > 1:
        strategy = FullySharded("gloo", 2) if case.sharded else DataParallel("gloo", 2)
    arguments = trainer_arguments({"strategy": strategy, "sync_batchnorm": world > 1}, case.precision)
    trainer = lightning.Trainer(
        **arguments,
        accelerator="cpu",
        devices=world,
        max_epochs=2,
        accumulate_grad_batches=case.accumulate,
        gradient_clip_val=case.clip,
        callbacks=[OverfittingGuard(5), *([MovingAverage(0.8, 1)] if case.averaged else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        inference_mode=False,
    )
    before = {name: each.clone() for name, each in module.state_dict().items()}
    with ExitStack() as drawn:
        if case.equal:
            drawn.enter_context(mock.patch.object(SampleSearch, "choose", KthBest.choose))
            drawn.enter_context(mock.patch.object(Gaussian, "sample", lambda self, generator=None: self.mean))
        trainer.fit(module, datamodule=data)
    path = folder / f"{world}.ckpt"
    trainer.save_checkpoint(path)
    kept = torch.load(path, weights_only=True)["state_dict"]
    weights = {name: each.clone() for name, each in whole(module.state_dict()).items()}
    logged = ("val/", "train_sample/", "gap/")
    scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(logged)}
    learned = any(not torch.equal(each, weights[name]) for name, each in before.items())
    return {"weights": weights, "kept": kept, "scores": scores, "learned": learned, "said": len(module.captioned)}


def main(shapes: str, output: str, *cases: str) -> None:
    for name in cases:
        folder = Path(output) / name
        folder.mkdir(parents=True, exist_ok=True)
        found = trained(CASES[name], Path(shapes), folder, place().world)
        torch.save(found, folder / f"rank{place().rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
