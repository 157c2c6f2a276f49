"""Score a captioner: `python -m src.evaluate model=runs/…/bundle data=scenes split=test output=DIR`."""

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from src.bundle import CALIBRATION, bundle_folder
from src.captioner import Captioner
from src.check import check, named_models
from src.command import command
from src.confidence import Calibration
from src.config import CONF, keep_freed_memory, one_sentence, plain, precision
from src.data.control import REFERENCE, nearest_length, tag_tokens
from src.data.features import state_digest
from src.data.module import CaptionData
from src.ensemble import EnsembleCaptioner
from src.evaluation import evaluate, references_digest, report_scores
from src.model import ConfigError
from src.train import build_data, cache_features, nouns_file


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Evaluate what the config names; returns the scores."""
    check(config, "evaluate")
    keep_freed_memory()
    models = named_models(config["model"])
    captioner = EnsembleCaptioner.load_all(models, device_name=config["device"], precision_name=config["precision"])
    if config.get("generation"):
        captioner.search_by(config["generation"])
    if (config["diversity"] or 1) > captioner.generation.captions:
        raise ConfigError(
            f"diversity={config['diversity']}: the search gives at most {captioner.generation.captions} captions a "
            f"picture; choose generation=sample generation.captions={config['diversity']}, or a beam of that size"
        )
    split, length = config["split"], config["length"]
    captioner.ask(None if length == REFERENCE else length, config["tags"])
    if length == REFERENCE:
        nearest_length(captioner.vocabulary, 0)  # a captioner that knows no lengths is refused before any work
    output = Path(config["output"] or Path("runs") / "evaluate" / split)
    views = [
        build_data(
            {
                "data": config["data"],
                "regions": config["regions"],
                **{part: member.config[part] for part in ("transform", "tokenizer", "encoder", "control")},
            },
            vocabulary=captioner.vocabulary,
        )
        for member in captioner.members
    ]
    for data in views if config["tags"] else ():
        data.restrict(split, tag_tokens(config["tags"]))
    views[0].images(split)  # an unknown split is refused before any work
    title = " + ".join(models)
    if config["reuse"] and _scored_before(output, captioner, views[0], config):
        return report_scores(title, output)
    for member, data in zip(captioner.members, views, strict=True):
        cache_features(
            {"data": config["data"], "encoder": member.config["encoder"]},
            data,
            member.model.encoder,
            [split],
            captioner.device.type,
            precision(config["precision"], captioner.device.type),
        )
    evaluate(
        captioner,
        views,
        split,
        output,
        metrics=config["metrics"],
        nouns=nouns_file(config),
        pictures=config["pictures"],
        meta={"model": config["model"], "seed": _seeds(captioner)},
        limit=config["limit"],
        length=length,
        diversity=config["diversity"],
    )
    if config["calibrate"]:
        _calibrate(Path(models[0]), output)
    return report_scores(title, output)


def _seeds(captioner: Captioner) -> Any:
    """The captioner's seed, or a list of an ensemble's."""
    seeds = [member.config["provenance"].get("seed") for member in captioner.members]
    return seeds if len(seeds) > 1 else seeds[0]


def _calibrate(model: Path, output: Path) -> None:
    """Keep in a bundle the calibration that its scores gave.

    Raises:
        ConfigError: they gave none.
    """
    if not (output / CALIBRATION).exists():
        reason = json.loads((output / "meta.json").read_text(encoding="utf-8"))["not_computed"]["confidence_ece"]
        raise ConfigError(f"calibrate=true: {reason}; the scores are in {output}, and the bundle is as it was")
    Calibration.load(output / CALIBRATION).save(bundle_folder(model) / CALIBRATION)


def _scored_before(output: Path, captioner: Captioner, data: CaptionData, config: dict[str, Any]) -> bool:
    """Whether `output` holds the scores of these very weights, search, references, metrics and control tokens."""
    if not (output / "meta.json").exists():
        return False
    meta = json.loads((output / "meta.json").read_text(encoding="utf-8"))
    return bool(
        meta["model_weights"] == state_digest(captioner.model)
        and meta["generation"] == captioner.config["generation"]
        and meta["references"] == references_digest(data, config["split"], config["limit"])
        and meta["metrics"] == list(config["metrics"])
        and meta.get("control", []) == captioner.control
        and meta.get("length") == config["length"]
        and meta.get("diversity") == config["diversity"]
        and not config["calibrate"]
    )


@command("evaluate")
@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
@one_sentence
def main(config: DictConfig) -> None:
    """Hydra's entry point."""
    run(plain(config))


if __name__ == "__main__":
    main()
