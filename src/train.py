"""Train a captioner: `python -m src.train encoder=resnet50 decoder=lstm_attn`. Composes, builds, runs."""

import logging
import shutil
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as lightning
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from joblib import cpu_count
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from src import slurm
from src.bundle import CALIBRATION, Bundle, Saved, bundle_config, load_bundle, save_bundle, without_weights
from src.captioner import Captioner
from src.check import NO_VALIDATION, check
from src.checkpoints import CheckpointFiles, LastCheckpoint, damage, newest
from src.command import command
from src.confidence import Calibration
from src.config import (
    CONF,
    autocast_dtype,
    called,
    device,
    forget_rare_shapes,
    give_back_memory,
    given_fields,
    keep_freed_memory,
    one_sentence,
    path_name,
    plain,
    precision,
    quiet,
)
from src.dashboards import begin, end, environment
from src.data.control import asked
from src.data.module import CaptionData
from src.data.regions import region_files
from src.distributed import launch, only_warnings, place
from src.encoders import Encoder
from src.evaluation import code_version, evaluate, report_scores
from src.files import room_among, write_atomically
from src.generation.base import self_contained
from src.initial import freeze, initialise, started
from src.interruption import Interruption, is_first
from src.loggers import WANDB_ID
from src.metrics.groups import summary as people_summary
from src.model import TRAINING, build, instantiate
from src.results import read_results
from src.runs import BEFORE, LAST, STATUS, checkpoints, last_checkpoint, recorded, run_folder
from src.strategies import FullySharded, processes_to_start, trainer_arguments, whole
from src.sweeps import sweep_job
from src.training import CaptioningModule, ShardedCaptioningModule
from src.trials import Pruning, monitored

log = logging.getLogger(__name__)


NOT_OF_THE_DATA = ("make", "nouns", "cache", "cache_views", "cache_workers")
"""Fields of the data group that `CaptionData` does not take."""


def build_data(config: dict[str, Any], **known: Any) -> CaptionData:
    """The data module of a config's `data`, `transform`, `tokenizer`, `control` and, where that reads regions,
    `encoder`; makes built-in data that is not there yet."""
    data = {k: v for k, v in config["data"].items() if k not in NOT_OF_THE_DATA}
    if config["data"].get("make"):
        from src.prepare.scenes import make_scenes

        make_scenes(Path(data["root"]), **config["data"]["make"])
    return CaptionData(
        **{
            **data,
            "preprocess": instantiate(config["transform"]),
            "tokenizer": instantiate(config["tokenizer"]),
            "control": instantiate(config["control"]) if config.get("control") else None,
            "regions": region_files(config["encoder"], Path(data["root"]), config.get("regions")),
            **known,
        }
    )


def cache_features(
    config: dict[str, Any],
    data: CaptionData,
    encoder: Encoder,
    names: list[str],
    device_name: str,
    arithmetic: str,
    views: int = 1,
) -> None:
    """Cache what the frozen stages say of these splits, of training pictures in so many views, unless `data.cache` is
    off; or read it from shards that hold it."""
    packed = [name for name in data.tables if data.packed(name)]
    if packed and not encoder.frozen_stages:
        raise ValueError(
            f"{data.place(packed[0])} holds features of a frozen encoder, and this one learns: set encoder.frozen, or "
            "pack pictures"
        )
    names = names if config["data"]["cache"] else [name for name in names if name in packed]
    if encoder.frozen_stages and names:
        data.cache_features(
            encoder,
            config["encoder"]["backbone"],
            names,
            views,
            device=device_name,
            precision=autocast_dtype(arithmetic),
            workers=threads_to_cache(config["data"]["cache_workers"]),
        )


def threads_to_cache(wanted: int | None) -> int | None:
    """`data.cache_workers`; of several processes one builds a cache while the others wait, so it takes all cores."""
    return cpu_count() if wanted is None and place().world > 1 else wanted


def train(config: dict[str, Any], given: Collection[str] = ()) -> float | None:
    """Run one training: returns the best validation score of `callbacks`' checkpoint, for sweeps.

    Args:
        config: the composed config, as plain values.
        given: what the user or a recipe set in it, which `init` leaves as it is: groups and dotted fields.
    """
    config, start = started(config, given)
    run = run_folder(config)
    if config["ckpt"] is None and slurm.was_requeued(run / STATUS):
        config["ckpt"] = "last"
    check(config)
    config["generation"] = self_contained(config["generation"])
    trial = bool(config["trainer"].get("fast_dev_run"))
    anew = config["ckpt"] is None and not trial
    if anew and not config["overwrite"] and last_checkpoint(run).exists():
        raise ValueError(
            f"{run} holds this training already: add ckpt=last to go on, name=NAME for another, or overwrite=true"
        )
    about = {"version": code_version(), **({"job": slurm.job()} if slurm.job() else {}), **called()}
    with (
        Interruption() as interruption,
        recorded(run, about, config["ckpt"] == "last", keep=is_first()) as record,
        room_among(
            [run, Path(config["data"]["cache_dir"]), Path(tempfile.gettempdir()), Path("/dev/shm")],
            "go on with ckpt=last",
        ),
    ):
        if anew and is_first():  # alone: the others come when it has begun to log
            for name in ("metrics.csv", WANDB_ID):
                (run / name).unlink(missing_ok=True)
            for name in ("tensorboard", "checkpoints"):  # an earlier training's are not to be gone on with
                shutil.rmtree(run / name, ignore_errors=True)
        return _train(config, start, run, trial, record, interruption)


def _train(
    config: dict[str, Any],
    start: Saved | None,
    run: Path,
    trial: bool,
    record: dict[str, Any],
    interruption: Interruption,
) -> float | None:
    keep_freed_memory()
    forget_rare_shapes()
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")

    known = {"vocabulary": start.vocabulary, "extend": config["init_vocabulary"] == "extend"} if start else {}
    data = build_data(config, seed=config["seed"], **known)
    give_back_memory()
    run.mkdir(parents=True, exist_ok=True)
    if is_first():
        write_atomically(run / "config.yaml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False))
    if "val" not in data.tables:
        raise ValueError(NO_VALIDATION)
    data.check_leaks()
    vocabulary = data.vocabulary
    control = asked(vocabulary, tags=data.control.validate) if data.control else []
    asked(vocabulary, tags=data.control.default if data.control else None)  # one that is not there is refused now
    if control:
        data.restrict("val", control)
    log.info("%s", vocabulary.summary())
    model = build(without_weights(config) if start else config, vocabulary)
    checkpoint = find_checkpoint(config["ckpt"], run)
    if start:
        initialise(model, vocabulary, start, path_name(config["init"]))
    elif checkpoint is None:  # which brings what was learned
        model.decoder.embedding.fit(data.training_tokens(), data.cache_dir / "embeddings")
    freeze(model, config["freeze"])
    provenance = {
        "version": code_version(),
        "encoder_weights": model.encoder.backbone.weights_used,
        **({"word_vectors": model.decoder.embedding.source} if model.decoder.embedding.source else {}),
        **({"init": path_name(config["init"])} if start else {}),
        **({"teachers": ", ".join(map(path_name, its))} if (its := config["objective"].get("teachers")) else {}),
        "data": data.root.resolve().name,
        "seed": config["seed"],
        "trained_on": f"{len(data.images('train'))} images",
    }
    kept = bundle_config(config, provenance)
    objective = instantiate(config["objective"])
    objective.begin(model, data)
    callbacks = [instantiate(c, TRAINING) for c in (config.get("callbacks") or {}).values() if c]
    pruning = Pruning.of_this_job(monitored(config)[0])
    callbacks += [pruning] if pruning else []
    callbacks.sort(key=lambda callback: isinstance(callback, LastCheckpoint))  # which keeps what the others made
    for callback in callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.interruption = interruption
    loggers = [instantiate(c, TRAINING) for c in (config.get("logger") or {}).values() if c]
    wanted = slurm.on_cluster(config["trainer"])
    kind = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps"}.get(wanted["accelerator"], device())
    arithmetic = precision(wanted["precision"], kind)
    options = trainer_arguments(wanted, arithmetic)
    options["plugins"] = [CheckpointFiles(), *options["plugins"]]
    trainer = lightning.Trainer(
        **options,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=run,
        use_distributed_sampler=False,  # the orders in src/data/module.py know their rank
        num_sanity_val_steps=0,
        inference_mode=False,  # under autocast it would cast the weights anew at every step of a search
    )
    own = str(trainer.strategy.root_device)  # this process's device
    module = (ShardedCaptioningModule if isinstance(trainer.strategy, FullySharded) else CaptioningModule)(
        model,
        vocabulary,
        data.tokenizer,
        objective,
        instantiate(config["generation"]),
        config["optimizer"],
        config.get("scheduler"),
        data.images("val").captions,
        config["validation_metrics"],
        kept,
        config["seed"],
        control,
    )
    if config["compile"]:
        model.compile_parts()
    cached, views = ["train", "val"], config["data"]["cache_views"]
    if views > 1:
        log.info("data.cache_views=%d: of so many views of a training picture, each draw reads one of the cache", views)
    elif data.preprocess.augment:
        cached = ["val"]
        log.info("transform.augment: training pictures vary, so they are read and encoded anew every epoch")
    cache_features(config, data, model.encoder, cached, own, arithmetic, views)
    if is_first():
        record["environment"], record["fingerprint"] = environment(trainer), data.fingerprint()
        known = {name: record[name] for name in ("environment", "fingerprint")}
        begin(trainer.loggers, config, code_version=provenance["version"], **known)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)

    best: Any = next((c for c in callbacks if isinstance(c, ModelCheckpoint)), None)
    best_path = getattr(best, "best_model_path", "")
    if best_path and not trial:
        bundle = load_bundle(Path(best_path))
    elif isinstance(trainer.strategy, FullySharded):
        together = build(without_weights(config), vocabulary)
        together.load_state_dict(whole(model.state_dict()))
        bundle = Bundle(together.eval(), vocabulary, kept)
    else:
        bundle = Bundle(model.eval(), vocabulary, kept)
    score, monitor, mode = (getattr(best, name, None) for name in ("best_model_score", "monitor", "mode"))
    if score is None:  # nothing selected an epoch: the last is kept, and its score tells runs apart
        monitor, mode = "val/CIDEr", "max"
        score = trainer.callback_metrics.get(monitor)
    record["epochs"] = trainer.fit_loop.epoch_progress.current.ready  # that max_steps has cut short counts, too
    results: dict[str, Any] = {}
    if score is not None:
        record |= {"best": float(score), "monitor": monitor, "mode": mode}
        results = {f"best/{monitor}": float(score)}
    first = trainer.is_global_zero
    if pruning and pruning.pruned:  # neither a bundle nor scores; ckpt=last goes on with it
        record["state"] = "pruned"
        if first:
            end(trainer.loggers, results, trainer.global_step, checkpoints=checkpoints(run)[:1])
        return None if score is None else float(score)
    captioner = Captioner(
        bundle.model,
        vocabulary,
        data.tokenizer,
        data.preprocess,
        module.generation,
        device_name=own,
        precision_name=arithmetic,
        control=control,
    )
    captioner.config = kept
    if first:
        save_bundle(run / "bundle", bundle)  # before the scores, so that no failure there loses it
    scores: dict[str, Any] = {}
    splits = [name for name in config["evaluate_splits"] or [] if name in data.tables]
    for split in splits if control else ():
        data.restrict(split, control)
    cache_features(config, data, bundle.model.encoder, splits, own, arithmetic)
    for split in splits:  # every process captions its share
        output = run / "eval" / split
        scores = evaluate(
            captioner,
            data,
            split,
            output,
            nouns=nouns_file(config),
            meta={"model": str(run), "seed": config["seed"]},
            limit=data.eval_batch_size if trial else None,
        )
        if not first:
            continue
        report_scores(config["name"], output)
        if split == "val" and (output / CALIBRATION).exists():
            bundle = bundle._replace(calibration=Calibration.load(output / CALIBRATION))
        results |= {f"eval/{split}/{name}": value for name, value in scores.items()}
    if first:
        if scores:
            people = read_results(run, splits[-1]).people
            save_bundle(run / "bundle", bundle, scores, card=people_summary(people) if people else "")
        files = [Path(best_path)] if best_path else []
        files += [path for path in checkpoints(run)[:1] if path not in files]
        end(trainer.loggers, results, trainer.global_step, bundle=run / "bundle", checkpoints=files)
        log.info("bundle: %s", run / "bundle")
    return None if score is None else float(score)


def nouns_file(config: dict[str, Any]) -> Path | None:
    """The file of the nouns that pictures show, where the data has one."""
    name = config["data"].get("nouns")
    return Path(config["data"]["root"]) / name if name else None


def find_checkpoint(wanted: str | None, run: Path) -> str | None:
    """`last` → this run's last checkpoint that is whole, or a fresh start where there is none; else a checkpoint's
    path, or None.

    Raises:
        ValueError: it is damaged.
    """
    if not wanted:
        return None
    if wanted == "last":
        if (last := newest(run)) is None:
            log.warning("ckpt=last: %s does not exist yet; starting from the beginning", last_checkpoint(run))
        elif last.name == BEFORE and is_first():  # a damaged one is not to be kept as the one before
            with suppress(FileNotFoundError):
                damaged = last.with_name(LAST)
                damaged.replace(damaged.with_name(f"{LAST}.damaged"))
        return str(last) if last else None
    if problem := damage(Path(wanted)):
        raise ValueError(f"ckpt={wanted}: no checkpoint that a training can go on from ({problem})")
    return wanted


def processes_of(trainer: Mapping[str, Any]) -> int:
    """How many processes are still to be started on this machine for a config's `trainer`."""
    wanted = slurm.on_cluster(trainer)
    options = {name: value for name, value in wanted.items() if name not in ("deterministic", "benchmark")}
    arguments = trainer_arguments(options, precision(trainer["precision"], ""))  # nothing is asked of a GPU yet
    with quiet():
        return processes_to_start(lightning.Trainer(**arguments, logger=False))


@command("train")
@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@sweep_job
@one_sentence
def main(config: DictConfig) -> float | None:
    """Hydra's entry point."""
    settings = plain(config)
    if HydraConfig.get().mode != RunMode.MULTIRUN and (processes := processes_of(settings["trainer"])) > 1:
        launch(processes, "src.train")
    if place().rank:
        only_warnings()
    return train(settings, given_fields())


if __name__ == "__main__":
    main()
