"""The losses of a few steps, with everything fixed, through the command line: a change of the main path that should
not change what is learned must not change them. Where one should, a failure prints the new ones."""

import csv

import pytest

from tests.test_commands import call

LOSSES = {
    "lstm_attn": [2.7588, 2.7235, 2.4884, 2.3821, 2.3203, 2.0990, 2.0880, 2.1850],
    "lstm": [2.7017, 2.6544, 2.5478, 2.5357, 2.3311, 2.3941, 2.2891, 2.2323],
}


@pytest.mark.parametrize("decoder", LOSSES)
def test_losses_of_the_first_steps(decoder, shapes, tmp_path):
    call(
        "src.train",
        f"decoder={decoder}",
        *("data=tsv", f"data.root={shapes}", "data.train=train.tsv", "data.val=val.tsv", "data.min_count=1"),
        *("data.batch_size=4", f"data.cache_dir={tmp_path / 'cache'}", "data.workers=0", "transform.size=32"),
        *("encoder=cnn", "encoder.backbone.channels=[16,32]", "encoder.backbone.weights=random", "encoder.width=64"),
        *("embedding.size=32", "decoder.hidden=48", "decoder.dropout=0.3", "optimizer.lr=0.01", "logger=csv"),
        *("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu"),
        *("trainer.precision=32-true", "callbacks=averaged", "callbacks.averaging.update_every_n_steps=1"),
        *("evaluate_splits=[]", f"run_dir={tmp_path / 'run'}", "seed=7"),
    )
    with (tmp_path / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert losses == pytest.approx(LOSSES[decoder], rel=2e-3), ", ".join(f"{loss:.4f}" for loss in losses)
