"""Score a captioner: `python -m src.evaluate model=runs/…/bundle data=scenes split=test output=DIR`."""

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from src.captioner import Captioner
from src.check import check
from src.command import command
from src.config import CONF, keep_freed_memory, one_sentence, plain, precision
from src.data.control import REFERENCE, nearest_length, tag_tokens
from src.data.features import state_digest
from src.data.module import CaptionData
from src.evaluation import evaluate, references_digest, report_scores
from src.model import instantiate
from src.train import build_data, cache_features, nouns_file


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Evaluate what the config names; returns the scores."""
    check(config, "evaluate")
    keep_freed_memory()
    generation = instantiate(config["generation"]) if config.get("generation") else None
    captioner = Captioner.load(
        config["model"], generation, device_name=config["device"], precision_name=config["precision"]
    )
    if config.get("generation"):
        captioner.config["generation"] = config["generation"]
    split, length = config["split"], config["length"]
    captioner.ask(None if length == REFERENCE else length, config["tags"])
    if length == REFERENCE:
        nearest_length(captioner.vocabulary, 0)  # a captioner that knows no lengths is refused before any work
    output = Path(config["output"] or Path("runs") / "evaluate" / split)
    data = build_data(
        {
            "data": config["data"],
            "regions": config["regions"],
            **{part: captioner.config[part] for part in ("transform", "tokenizer", "encoder", "control")},
        },
        vocabulary=captioner.vocabulary,
    )
    if config["tags"]:
        data.restrict(split, tag_tokens(config["tags"]))
    data.images(split)  # an unknown split is refused before any work
    if config["reuse"] and _scored_before(output, captioner, data, config):
        return report_scores(config["model"], output)
    cache_features(
        {"data": config["data"], "encoder": captioner.config["encoder"]},
        data,
        captioner.model.encoder,
        [split],
        captioner.device.type,
        precision(config["precision"], captioner.device.type),
    )
    evaluate(
        captioner,
        data,
        split,
        output,
        metrics=config["metrics"],
        nouns=nouns_file(config),
        pictures=config["pictures"],
        meta={"model": str(config["model"]), "seed": captioner.config["provenance"].get("seed")},
        limit=config["limit"],
        length=length,
    )
    return report_scores(config["model"], output)


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
    )


@command("evaluate")
@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
@one_sentence
def main(config: DictConfig) -> None:
    """Hydra's entry point."""
    run(plain(config))


if __name__ == "__main__":
    main()
