import xml.etree.ElementTree as ElementTree

import pytest

from src import runs
from src.curves import curves_svg, read_curve


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


@pytest.mark.parametrize("curve", [[(1, 0.5)], [(1, 0.2), (2, 0.2)], [(n, 0.02 * n) for n in range(1, 41)]])
def test_every_point_lies_in_the_picture(curve):
    picture = ElementTree.fromstring(curves_svg({"a <run>": curve, "b": [(1, 0.1)]}, "CIDEr × 100", 100))
    _, _, width, height = map(float, picture.get("viewBox").split())
    circles = [e for e in picture.iter() if e.tag.endswith("circle")]
    assert len(circles) == len(curve) + 1
    assert all(0 < float(c.get("cx")) < width and 0 < float(c.get("cy")) < height for c in circles)
    own = [float(c.get("cy")) for c in circles[: len(curve)]]
    assert own == sorted(own, reverse=True), "higher is further up"
    assert "a <run>" in [e.text for e in picture.iter()]


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
