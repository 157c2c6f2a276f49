"""Train a captioner: `python -m src.train encoder=resnet50 decoder=lstm_attn`. Composes, builds, runs."""

import json
import logging
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as lightning
import torch
import yaml
from omegaconf import DictConfig

from src.bundle import Bundle, bundle_config, load_bundle, save_bundle
from src.captioner import Captioner
from src.check import NO_VALIDATION, check
from src.command import command
from src.config import CONF, autocast_dtype, device, one_sentence, plain, precision
from src.data.module import CaptionData
from src.encoders import Encoder
from src.evaluation import code_version, evaluate, report_scores, write_atomically
from src.model import TRAINING, build, instantiate
from src.training import CaptioningModule

log = logging.getLogger(__name__)


def build_data(config: dict[str, Any], **known: Any) -> CaptionData:
    """The data module of a config's `data`, `transform` and `tokenizer`; makes built-in data that is not there yet."""
    data = {k: v for k, v in config["data"].items() if k not in ("make", "nouns", "cache", "cache_workers")}
    if config["data"].get("make"):
        from src.prepare.scenes import make_scenes

        make_scenes(Path(data["root"]), **config["data"]["make"])
    return CaptionData(
        **{
            **data,
            "preprocess": instantiate(config["transform"]),
            "tokenizer": instantiate(config["tokenizer"]),
            **known,
        }
    )


def cache_features(
    config: dict[str, Any], data: CaptionData, encoder: Encoder, names: list[str], kind: str, arithmetic: str
) -> None:
    """Cache a frozen backbone's features of these splits, unless `data.cache` is off."""
    if encoder.frozen and config["data"]["cache"]:
        data.cache_features(
            encoder,
            config["encoder"]["backbone"],
            names,
            device=kind,
            precision=autocast_dtype(arithmetic),
            workers=config["data"]["cache_workers"],
        )


def train(config: dict[str, Any]) -> float | None:
    """Run one training: returns the best validation score of `callbacks`' checkpoint, for sweeps."""
    check(config)
    run = Path(config["run_dir"])
    trial = bool(config["trainer"].get("fast_dev_run"))
    if trial:
        run = run.with_name(run.name + ".fast_dev_run")  # a trial never touches a real run
    elif config["ckpt"] is None and not config["overwrite"] and (run / "checkpoints" / "last.ckpt").exists():
        raise ValueError(
            f"{run} holds this training already: add ckpt=last to go on, name=NAME for another, or overwrite=true"
        )
    elif config["ckpt"] is None:
        (run / "metrics.csv").unlink(missing_ok=True)
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")

    data = build_data(config, seed=config["seed"])
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / "config.yaml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False))
    if "val" not in data.tables:
        raise ValueError(NO_VALIDATION)
    vocabulary = data.vocabulary
    log.info("%s", vocabulary.summary())
    model = build(config, vocabulary)
    provenance = {
        "version": code_version(),
        "encoder_weights": model.encoder.backbone.weights_used,
        "data": data.root.resolve().name,
        "seed": config["seed"],
        "trained_on": f"{len(data.images('train'))} images",
    }
    kept = bundle_config(config, provenance)
    module = CaptioningModule(
        model,
        vocabulary,
        data.tokenizer,
        instantiate(config["objective"]),
        instantiate(config["generation"]),
        config["optimizer"],
        config.get("scheduler"),
        data.images("val").captions,
        config["validation_metrics"],
        kept,
        config["seed"],
    )
    options = dict(config["trainer"])
    kind = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps"}.get(options["accelerator"], device())
    options["precision"] = precision(options["precision"], kind)
    cache_features(config, data, model.encoder, ["train", "val"], kind, options["precision"])
    callbacks = [instantiate(c, TRAINING) for c in (config.get("callbacks") or {}).values() if c]
    loggers = [instantiate(c, TRAINING) for c in (config.get("logger") or {}).values() if c]
    trainer = lightning.Trainer(
        **options,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=run,
        use_distributed_sampler=False,  # the orders in src/data/module.py know their rank
        num_sanity_val_steps=0,
    )
    for logger in loggers:
        logger.log_hyperparams(_flat(config))
    checkpoint = find_checkpoint(config["ckpt"], run)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)

    best = trainer.checkpoint_callback
    best_path = getattr(best, "best_model_path", "")
    bundle = load_bundle(Path(best_path)) if best_path and not trial else Bundle(model.eval(), vocabulary, kept)
    score = getattr(best, "best_model_score", None)
    if trainer.is_global_zero:
        captioner = Captioner(
            bundle.model,
            vocabulary,
            data.tokenizer,
            data.preprocess,
            module.generation,
            device_name=kind,
            precision_name=options["precision"],
        )
        captioner.config = kept
        save_bundle(run / "bundle", bundle)  # before the scores, so that no failure there loses it
        scores: dict[str, Any] = {}
        wanted = [name for name in config["evaluate_splits"] or [] if name in data.tables]
        cache_features(config, data, bundle.model.encoder, wanted, kind, options["precision"])
        for split in wanted:
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
            report_scores(config["name"], output)
        if scores:
            save_bundle(run / "bundle", bundle, scores)
        if not trial:
            write_atomically(run / "finished.json", json.dumps({"epochs": trainer.current_epoch}) + "\n")
        log.info("bundle: %s", run / "bundle")
    return None if score is None else float(score)


def nouns_file(config: dict[str, Any]) -> Path | None:
    """The file of the nouns that pictures show, where the data has one."""
    name = config["data"].get("nouns")
    return Path(config["data"]["root"]) / name if name else None


def find_checkpoint(wanted: str | None, run: Path) -> str | None:
    """`last` → this run's last checkpoint, or a fresh start where there is none; else a checkpoint's path, or None."""
    if not wanted:
        return None
    if wanted == "last":
        last = run / "checkpoints" / "last.ckpt"
        if not last.exists():
            log.warning("ckpt=last: %s does not exist yet; starting from the beginning", last)
            return None
        return str(last)
    return wanted


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@command("train")
@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@one_sentence
def main(config: DictConfig) -> float | None:
    """Hydra's entry point."""
    return train(plain(config))


if __name__ == "__main__":
    main()
