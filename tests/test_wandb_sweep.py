"""What an agent of Weights & Biases calls for docs/wandb_sweep.yaml, put together by W&B's own code, is a training."""

import itertools

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.check import check
from src.config import ROOT
from tests.test_configs import composed

SWEEP = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
DRAWN = {
    name: spec["values"] if "values" in spec else [spec["value"]] if "value" in spec else [spec["min"], spec["max"]]
    for name, spec in SWEEP["parameters"].items()
}
AGENTS = [dict(zip(DRAWN, values, strict=True)) for values in itertools.product(*DRAWN.values())]


def called(values: dict, monkeypatch) -> list[str]:
    """The words of an agent's call, W&B's process left out."""
    agent = pytest.importorskip("wandb.wandb_agent", reason="needs wandb")
    words: list[str] = []
    monkeypatch.setattr(agent, "AgentProcess", lambda command, **_: words.extend(command) or type("Process", (), {})())
    monkeypatch.setattr(agent.config_util, "save_config_file_from_dict", lambda *_: None)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets; put back at the end
        monkeypatch.setenv(name, "before")
    mine = agent.Agent(api=None, queue=None, sweep_id="abc")
    mine._sweep_command = SWEEP["command"]
    args = {name: {"value": value} for name, value in values.items()}
    mine._command_run({"type": "run", "run_id": "run1", "program": SWEEP["program"], "args": args})
    return words


@pytest.mark.parametrize("values", AGENTS, ids=str)
def test_what_an_agent_calls_is_a_training(values, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = called(values, monkeypatch)
    assert words[:4] == ["/usr/bin/env", "python", "-m", "src.train"] and not any(w.startswith("-") for w in words[4:])
    config = composed(words[4:])
    check(config)
    assert config["name"] == "wandb/run1" and list(config["logger"]) == ["csv", "wandb"]
    for each in OverridesParser.create().parse_overrides([word for word in words[4:] if "." in word.partition("=")[0]]):
        node = config
        for key in each.key_or_group.split("."):
            node = node[key]
        assert node == values[each.key_or_group]
    assert f"decoder={values['decoder']}" in words


def test_the_agents_score_is_one_that_validation_logs():
    config = composed([])
    assert SWEEP["metric"]["name"] == config["callbacks"]["checkpoint"]["monitor"]
    assert (SWEEP["metric"]["goal"] == "maximize") == (config["callbacks"]["checkpoint"]["mode"] == "max")
