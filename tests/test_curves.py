import pytest

from src import runs
from src.curves import Sampled, read_curve, read_gap, read_sampled


def write(run, rows):
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("epoch,step,train/loss,val/CIDEr\n" + "\n".join(rows) + "\n")
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "status.json").write_text('{"state": "finished"}')


def test_a_curve_is_the_scores_of_the_validations(tmp_path):
    write(tmp_path / "a", ["0,9,3.1,", "0,10,,0.2", "1,19,2.9,", "1,20,,0.35"])
    assert read_curve(tmp_path / "a", "CIDEr") == [(1, 0.2), (2, 0.35)]
    with pytest.raises(ValueError, match="has no val/METEOR; it has CIDEr"):
        read_curve(tmp_path / "a", "METEOR")
    with pytest.raises(ValueError, match="metrics.csv: no such file"):
        read_curve(tmp_path / "b", "CIDEr")


def test_the_gap_is_of_means_over_an_epochs_steps(tmp_path):
    rows = [
        "0,9,3.0,4.0,,",
        "0,19,2.0,3.0,,",
        "0,19,,,3.0,3.5",
        "1,29,1.5,2.5,,",
        "2,39,1.0,inf,,",
        "2,39,,,2.75,3",
        ",40,,,,",
    ]
    run = tmp_path / "a"
    run.mkdir()
    head = "epoch,step,train/cross_entropy,train/loss,val/cross_entropy,val/loss\n"
    (run / "metrics.csv").write_text(head + "\n".join(rows) + "\n")
    found = read_gap(run)
    assert found.measure == "cross_entropy"
    assert found.training == [(1, 2.5), (2, 1.5), (3, 1.0)] and found.validation == [(1, 3.0), (3, 2.75)]
    assert found.gap == [(1, 0.5), (3, 1.75)]
    (run / "metrics.csv").write_text(head.replace("cross_entropy", "other") + "\n".join(rows) + "\n")
    found = read_gap(run)
    assert (found.measure, found.training) == ("loss", [(1, 3.5), (2, 2.5)]), "what is no number does not count"
    (run / "metrics.csv").write_text(head.replace("train/cross_entropy", "train/reward") + "\n".join(rows) + "\n")
    assert read_gap(run) is None, "a reward is no cross-entropy"
    with pytest.raises(ValueError, match="metrics.csv: no such file"):
        read_gap(tmp_path / "b")


def test_the_sample_stands_beside_validation(tmp_path):
    write(tmp_path / "a", ["0,9,3.1,", "0,10,,0.2"])
    assert read_sampled(tmp_path / "a") is None, "it was off"
    rows = ["0,10,0.2,0.3,", "1,20,0.35,0.5,", "2,30,0.1,0.9,3.0"]
    (tmp_path / "a" / "metrics.csv").write_text(
        "epoch,step,val/CIDEr,train_sample/CIDEr,gap/warning\n" + "\n".join(rows) + "\n"
    )
    assert read_sampled(tmp_path / "a") == Sampled([(1, 0.3), (2, 0.5), (3, 0.9)], [(1, 0.2), (2, 0.35), (3, 0.1)], 3)


def test_the_command_draws_the_runs_that_are_asked_for(tmp_path, capsys):
    for name in ("x/a", "x/b", "c"):
        write(tmp_path / "runs" / name, ["0,10,,0.2", "1,20,,0.35"])
    target = tmp_path / "curve.svg"
    assert runs.main([str(tmp_path / "runs"), "--filter", "run~x/", "--curve", str(target)]) == 0
    assert "2 runs" in capsys.readouterr().out
    text = target.read_text()
    assert ">x/a<" in text and ">x/b<" in text and ">c<" not in text and "CIDEr × 100" in text
    assert runs.main([str(tmp_path / "runs"), "--curve", str(target), "--score", "Bleu_4"]) == 2
    assert "has no val/Bleu_4" in capsys.readouterr().err
    assert target.read_text() == text
