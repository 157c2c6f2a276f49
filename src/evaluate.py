"""Score captions: `python -m src.evaluate model=runs/…/bundle data=scenes split=test output=DIR`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from src.bundle import CALIBRATION, MATCHING, bundle_folder
from src.captioner import Captioner
from src.check import check, evaluated, named_models
from src.command import command
from src.confidence import Calibration
from src.config import CONF, device, keep_freed_memory, one_sentence, plain, precision
from src.data.control import REFERENCE, labels_of, nearest_length, tag_tokens
from src.data.features import state_digest
from src.data.module import CaptionData
from src.data.regions import check_below
from src.data.shards import pictures_below
from src.data.vocabulary import Vocabulary
from src.distributed import device_of, launch, only_warnings, place, together
from src.encoders.base import Encoder
from src.ensemble import EnsembleCaptioner
from src.evaluation import (
    defence_of,
    evaluate,
    evaluate_captions,
    recorded,
    references_of,
    report_scores,
    scoring_of,
    training_captions,
)
from src.help import choice_fields, choices
from src.matching import matcher_of
from src.model import ConfigError, instantiate
from src.predictions import of_images, read_predictions, read_references
from src.results import META, references_digest
from src.scoring import Scoring
from src.train import build_data, cache_features, nouns_file


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Evaluate what the config names; returns the scores, in the first of several processes."""
    check(config, "evaluate")
    keep_freed_memory()
    source = evaluated(config)
    output = Path(config["output"] or Path("runs") / "evaluate" / _usual_name(config, source))
    how = Scoring(
        metrics=config["metrics"],
        leave_one_out=config["leave_one_out"],
        spice=Path(config["spice"]) if config["spice"] else None,
        clip=Path(config["clip"]) if config["clip"] else None,
        groups=Path(config["groups"]) if config["groups"] else None,
    )
    of = {"model": _of_model, "predictions": _of_predictions, "baseline": _of_baseline}[source]
    with together() as here:
        if here.rank and source != "model":
            return {}  # there is nothing to share
        title = of(config, how, output)
        return {} if here.rank else report_scores(title, output)


def _usual_name(config: dict[str, Any], source: str) -> str:
    if source == "predictions":
        return Path(config["predictions"]).stem
    return config["split"] if source == "model" else f"{_choice(config['baseline'])}-{config['split']}"


def _choice(baseline: Mapping[str, Any]) -> str:
    """The name of a baseline's choice in conf/."""
    kinds = {choice_fields("baseline", choice)["_target_"]: choice for choice in choices("baseline")}
    return kinds[baseline["_target_"]]


def _of_model(config: dict[str, Any], how: Scoring, output: Path) -> str:
    models = named_models(config["model"])
    device_name = device_of(config["device"] or device(), place())
    captioner = EnsembleCaptioner.load_all(models, device_name=device_name, precision_name=config["precision"])
    if config.get("generation"):
        captioner.search_by(config["generation"])
    if config.get("defence"):
        captioner.defend_by(config["defence"])
    if (config["diversity"] or 1) > captioner.generation.captions:
        raise ConfigError(
            f"diversity={config['diversity']}: the search gives at most {captioner.generation.captions} captions a "
            f"picture; choose generation=sample generation.captions={config['diversity']}, or a beam of that size"
        )
    if config["rerank"]:
        matcher_of(captioner)  # one without is refused before any work
    split, length = config["split"], config["length"]
    tags = config["tags"] or captioner.default or ()
    captioner.ask(None if length == REFERENCE else length, tags)
    if length == REFERENCE:
        nearest_length(captioner.vocabulary, 0)  # a captioner that knows no lengths is refused before any work
    if config["regions"] is None:
        for member in captioner.members:
            check_below(member.config["encoder"], Path(config["data"]["root"]))
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
    for data in views if tags else ():
        tagged = split in data.tables and any(labels_of(data.tables[split]))
        if config["tags"] or tagged:  # what is asked for by default need not be in the table
            data.restrict(split, tag_tokens(tags))
    views[0].images(split)  # an unknown split is refused before any work
    title = " + ".join(models)
    about = {
        "model_weights": state_digest(captioner.model),
        "generation": captioner.config["generation"],
        "defence": defence_of(captioner),
        "control": captioner.control,
        "length": length,
        "diversity": config["diversity"],
        "rerank": config["rerank"],
    }
    if config["reuse"] and not config["calibrate"] and _scored_before(output, views[0], how, config, about):
        return title
    for member, data in zip(captioner.members, views, strict=True):
        cache_features(
            {"data": config["data"], "encoder": member.config["encoder"]},
            data,
            member.model.encoder,
            [split],
            str(captioner.device),
            precision(config["precision"], captioner.device.type),
        )
    evaluate(
        captioner,
        views,
        split,
        output,
        how=how,
        nouns=nouns_file(config),
        pictures=config["pictures"],
        meta={"model": config["model"], "seed": _seeds(captioner)},
        limit=config["limit"],
        length=length,
        diversity=config["diversity"],
        rerank=config["rerank"],
        per_image=config["per_image"],
    )
    if config["calibrate"] and not place().rank:
        _calibrate(Path(models[0]), output)
    return title


def _of_predictions(config: dict[str, Any], how: Scoring, output: Path) -> str:
    path, count = Path(config["predictions"]), config["diversity"] or 1
    data = training = None
    if config["references"]:
        references = read_references(Path(config["references"]), Path(config["images"]) if config["images"] else None)
        how = replace(how, tokenizer="script", cache=Path(config["data"]["cache_dir"]) / "tokenized")
        images = pictures_below(references.root)
        origin: dict[str, Any] = {"data": Path(config["references"]).name, "split": None}
        if config["training"]:
            every = read_references(Path(config["training"])).captions.values()
            training = [text for group in every for text in group]
    else:
        data = _data(config)
        references = of_images(references_of(data, config["split"]), data.root)
        images = data.pictures(config["split"])
        how, training = scoring_of(data, how), training_captions(data)
        origin = {"data": data.root.resolve().name, "split": config["split"]}
    captions = read_predictions(path, references, count)
    digest = hashlib.sha256(json.dumps(captions, ensure_ascii=False).encode()).hexdigest()[:16]
    evaluate_captions(
        captions,
        references.captions,
        output,
        images=images,
        how=how,
        meta={**origin, "predictions": str(path), "captions": digest},
        training=training,
        nouns=nouns_file(config) if data else None,
        pictures=config["pictures"],
        diversity=config["diversity"],
        per_image=config["per_image"],
    )
    return str(path)


def _of_baseline(config: dict[str, Any], how: Scoring, output: Path) -> str:
    baseline, split = instantiate(config["baseline"]), config["split"]
    data = _data(config, getattr(baseline, "config", {}).get("transform"))
    references = references_of(data, split, config["limit"])
    kind = config["device"] or device()

    def computing(encoder: Encoder, encoder_config: dict[str, Any], splits: list[str]) -> None:
        arithmetic = precision(config["precision"], kind)
        cache_features({"data": config["data"], "encoder": encoder_config}, data, encoder, splits, kind, arithmetic)

    said = baseline(data, split, computing)
    human = said is None
    how = scoring_of(data, replace(how, leave_one_out=how.leave_one_out or human))
    evaluate_captions(
        None if human else {image: [said[image]] for image in references},
        references,
        output,
        images=data.pictures(split),
        how=how,
        meta={
            "data": data.root.resolve().name,
            "split": split,
            "limit": config["limit"],
            "baseline": config["baseline"],
        },
        training=training_captions(data),
        nouns=nouns_file(config),
        pictures=config["pictures"],
        per_image=config["per_image"],
    )
    return f"baseline={_choice(config['baseline'])}"


def _data(config: dict[str, Any], transform: Mapping[str, Any] | None = None) -> CaptionData:
    """The data for what is no captioner: English or Chinese as its captions are, and with no use for a vocabulary."""
    parts = {
        "transform": transform or choice_fields("transform", "squash"),
        "tokenizer": choice_fields("tokenizer", "mixed"),
    }
    return build_data(
        {"data": config["data"], "encoder": {}, **parts}, vocabulary=Vocabulary.build([["word"]], min_count=1)
    )


def _seeds(captioner: Captioner) -> Any:
    """The captioner's seed, or a list of an ensemble's."""
    seeds = [member.config["provenance"].get("seed") for member in captioner.members]
    return seeds if len(seeds) > 1 else seeds[0]


def _calibrate(model: Path, output: Path) -> None:
    """Keep in a bundle the calibrations that its scores gave.

    Raises:
        ConfigError: they gave none.
    """
    if not (output / CALIBRATION).exists():
        reason = json.loads((output / META).read_text(encoding="utf-8"))["not_computed"]["confidence_ece"]
        raise ConfigError(f"calibrate=true: {reason}; the scores are in {output}, and the bundle is as it was")
    for name in (CALIBRATION, MATCHING):
        if (output / name).exists():
            Calibration.load(output / name).save(bundle_folder(model) / name)


def _scored_before(
    output: Path, data: CaptionData, how: Scoring, config: dict[str, Any], about: Mapping[str, Any]
) -> bool:
    """Whether `output` holds scores of the same kinds, of these very weights, search, references and control tokens."""
    if not (output / META).exists():
        return False
    meta = json.loads((output / META).read_text(encoding="utf-8"))
    digest = references_digest(references_of(data, config["split"], config["limit"]))
    wanted = {**about, **recorded(how), "references": digest}
    return all(name in meta and meta[name] == value for name, value in wanted.items())


@command("evaluate")
@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
@one_sentence
def main(config: DictConfig) -> None:
    """Hydra's entry point."""
    settings = plain(config)
    if settings["devices"] > 1 and place().world == 1:
        launch(settings["devices"], "src.evaluate")
    if place().rank:
        only_warnings()
    run(settings)


if __name__ == "__main__":
    main()
