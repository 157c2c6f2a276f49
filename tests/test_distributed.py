"""Several processes: real ones, that exchange by gloo, give what one gives."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from joblib import cpu_count
from safetensors.torch import load_file

from src import caption
from src.bundle import Bundle, bundle_config, save_bundle
from src.config import ROOT
from src.distributed import Place, device_of, place
from src.model import build
from src.parts import Parts
from src.results import read_results
from tests import several
from tests.conftest import tiny_config


def call(*command: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "WANDB_"))}
    plain |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=plain, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
    return done


@pytest.fixture
def bundle(tmp_path, vocabulary):
    torch.manual_seed(2)
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    made = build(config, vocabulary).eval()
    made.decoder.classifier.weight.data *= 30
    made.encoder.project.weight.data *= 100
    save_bundle(tmp_path / "bundle", Bundle(made, vocabulary, config))
    return tmp_path / "bundle"


# ---------------------------------------------------------------- which process this is


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Place(5, 8, 1)),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, Place(3, 4, 1)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Place(0, 1, 0)),  # a job's own script, without srun
    ],
)
def test_the_place_is_what_started_this_process_says(environment, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place() == expected


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [device_of("cuda", Place(rank, 8, rank % 4)) for rank in (0, 3, 6)] == ["cuda:0", "cuda:3", "cuda:2"]
    assert device_of("cuda", Place()) == "cuda" and device_of("cuda:1", Place()) == "cuda:1"
    assert device_of("cpu", Place(1, 2, 1)) == "cpu"


TOLD = """
import os, pathlib, signal, sys, time
rank = int(os.environ["RANK"])
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0 if rank else 7))
if sys.argv[1] == "fails" and rank:
    sys.exit(3)
pathlib.Path(f"{rank}.partial").write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {os.environ['WORLD_SIZE']}")
os.replace(f"{rank}.partial", f"{rank}.pid")
time.sleep(100)
"""


@pytest.mark.parametrize(("what", "status"), [("signal", 7), ("fails", 3), ("kill", -signal.SIGKILL)])
def test_processes_end_together(tmp_path, what, status):
    """A signal is passed on to all; one that fails ends the others; and none outlives the one that started them."""
    (tmp_path / "told.py").write_text(TOLD)
    starts = "import sys; from src.distributed import launch; launch(2, 'told', sys.argv[1:])"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", starts, what], cwd=tmp_path, env=environment) as parent:
        wanted = ["0.pid"] if what == "fails" else ["0.pid", "1.pid"]
        until = time.monotonic() + 100
        while not all((tmp_path / name).exists() for name in wanted):
            assert time.monotonic() < until
            time.sleep(0.1)
        said = [(tmp_path / name).read_text().split() for name in wanted]
        if what != "fails":
            parent.send_signal(signal.SIGUSR1 if what == "signal" else signal.SIGKILL)
        assert parent.wait(timeout=100) == status
    assert {tuple(each[1:]) for each in said} == {(str(max(1, cpu_count() // 2)), "2")}
    while any(alive(int(each[0])) for each in said):
        assert time.monotonic() < until
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------- captioning


@pytest.mark.parametrize("how", ["--devices", pytest.param("torchrun", marks=pytest.mark.slow), "srun"])
def test_captions_of_several_processes_are_those_of_one(bundle, shapes, tmp_path, how, capsys):
    pictures = [str(shapes / "images" / f"{number:02d}.png") for number in range(7)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pictures.insert(3, str(tmp_path / "broken.png"))
    flags = ["--model", str(bundle), *pictures, "--device", "cpu", "--n-best", "2", "--batch-size", "2"]
    one, two = tmp_path / "one.tsv", tmp_path / "two.tsv"
    looks = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert caption.main([*flags, "-o", str(one), "--attention", looks[0]]) == 1
    arguments = ["src.caption", *flags, "-o", str(two), "--attention", looks[1]]
    if how == "--devices":
        done = call("-m", *arguments, "--devices", "2", expect=1)
        said = done.stderr
    elif how == "torchrun":
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m"]
        said = call("-m", *torchrun, *arguments, expect=1).stderr
    else:
        said = "".join(by_srun(arguments, expect=[1, 0]))
    assert two.read_text() == one.read_text() and len(one.read_text().splitlines()) > 7
    assert "1 of 8 pictures could not be read" in said and said.count("broken.png") == 1
    assert not list(tmp_path.glob("*.part*"))
    drawn = [{path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in looks]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 7


SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}
SCRIPT |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
"""What SLURM tells a job's own script."""


def by_srun(arguments: list[str], expect: list[int]) -> list[str]:
    """Two processes with what srun tells its tasks; returns what each said on stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for rank in range(2):
        told = SCRIPT | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        told |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=ROOT, env=os.environ | told, stderr=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=200)[1] for process in running]
    assert [process.returncode for process in running] == expect, said
    return said


def test_several_processes_need_a_file(bundle, shapes, capsys):
    assert caption.main(["--model", str(bundle), str(shapes / "images"), "--devices", "2"]) == 2
    said = "error: --devices: several processes write files together; give -o FILE or --sidecar\n"
    assert capsys.readouterr().err == said
    assert caption.main(["--model", str(bundle), str(shapes / "images"), "--devices", "0"]) == 2
    assert "--devices 0: 1 or more" in capsys.readouterr().err


def test_a_stopped_call_is_taken_up(bundle, shapes, tmp_path, monkeypatch, capsys):
    flags = ["--model", str(bundle), str(shapes / "images"), "--device", "cpu", "--batch-size", "5"]
    assert caption.main([*flags, "-o", str(tmp_path / "whole.tsv")]) == 0
    output = tmp_path / "captions.tsv"
    opened: list[Path] = []
    stops = [12]  # before the thirteenth picture
    original = caption.open_picture

    def stop(path, *rest):
        if len(opened) in stops:
            raise KeyboardInterrupt
        opened.append(path)
        return original(path, *rest)

    monkeypatch.setattr(caption, "open_picture", stop)
    assert caption.main([*flags, "-o", str(output)]) == 130
    (part,) = tmp_path.glob("captions.tsv.*.part")
    with part.open("a") as file:
        file.write('[17, ["half a li')  # as a killed process may leave it
    assert not output.exists()
    stops.clear()
    assert caption.main([*flags, "-o", str(output), "--search", "greedy"]) == 0, "another search begins anew"
    assert len(opened) == 12 + 24
    with part.open("w") as file:
        file.writelines(f'[{number}, ["{number}\\tas it was"]]\n' for number in range(10))
    opened.clear()
    assert caption.main([*flags, "-o", str(output)]) == 0
    assert "10 of 24 are captioned already" in capsys.readouterr().err and len(opened) == 14
    found = output.read_text().splitlines()
    assert found[:10] == [f"{number}\tas it was" for number in range(10)]
    assert found[10:] == (tmp_path / "whole.tsv").read_text().splitlines()[10:]
    assert not list(tmp_path.glob("*.part*"))


def test_parts_of_fewer_processes_are_taken_up_by_more(tmp_path):
    output = tmp_path / "out.tsv"
    first = Parts(output, "k", 9, Place())
    for item in (0, 1, 4):
        first.add(item, [f"{item}"])
    first.flush()
    shares = [Parts(output, "k", 9, Place(rank, 3, rank)).share for rank in range(3)]
    assert shares == [[2, 6], [3, 7], [5, 8]]
    assert Parts(output, "other", 9, Place()).done == 0


def test_parts_of_a_call_that_was_killed_within_a_character_are_taken_up(tmp_path):
    first = Parts(tmp_path / "out.tsv", "k", 3, Place())
    first.add(0, ["一只狗"])
    first.flush()
    with first.file as file:
        file.write(b'[1, ["' + "狗".encode()[:2])
    again = Parts(tmp_path / "out.tsv", "k", 3, Place())
    assert again.done == 1 and again.share == [1, 2]


def test_parts_of_another_output_stay(tmp_path):
    other, mine = Parts(tmp_path / "out.tsv.gz", "k", 1, Place()), Parts(tmp_path / "out.tsv", "k", 1, Place())
    earlier = Parts(tmp_path / "out.tsv", "before", 1, Place())
    mine.add(0, ["a"])
    assert mine.join() == 1 and (tmp_path / "out.tsv").read_text() == "a\n"
    assert Path(other.file.name).exists() and not Path(earlier.file.name).exists()


def test_a_process_that_dies_is_an_error_and_not_a_missing_part(bundle, shapes, tmp_path):
    output = tmp_path / "captions.tsv"
    command = ["src.caption", "--model", str(bundle), str(shapes / "images"), "--device", "cpu", "-o", str(output)]
    dies = tmp_path / "dies.py"
    dies.write_text(
        "import os, signal, sys\n"
        "from src import caption\n"
        "from src.distributed import place\n"
        "original = caption.open_picture\n"
        "def dying(path, *rest):\n"
        "    if place().rank == 1 and path.name == '09.png':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(path, *rest)\n"
        "caption.open_picture = dying\n"
        "sys.exit(caption.main(sys.argv[1:]))\n"
    )
    start = time.monotonic()
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(dies)]
    done = call("-m", *torchrun, *command[1:], "--batch-size", "1", expect=1)
    assert "SIGKILL" in done.stderr or f"{-signal.SIGKILL.value}" in done.stderr
    assert not output.exists() and time.monotonic() - start < 100
    kept = list(tmp_path.glob("captions.tsv.*.part"))
    assert kept, "what was captioned is kept"
    assert caption.main(command[1:] + ["--batch-size", "1"]) == 0
    assert len(output.read_text().splitlines()) == 24


# ---------------------------------------------------------------- evaluation


def test_scores_of_several_processes_are_those_of_one(bundle, shapes, tmp_path):
    """All that an evaluation writes: captions, scores of the set and of each picture, attention, calibration; for an
    odd number of pictures, and for fewer than processes."""
    from src import evaluate
    from tests.test_configs import composed

    folder = tmp_path / "eval"
    data = ["data=tsv", f"data.root={shapes}", "data.train=train.tsv", "data.val=train.tsv", "data.nouns=nouns.json"]
    data += [f"data.cache_dir={tmp_path / 'cache'}", "data.workers=0", "data.eval_batch_size=3", "data.min_count=1"]
    plain = [f"model={bundle}", *data, "device=cpu", "precision=32-true", "split=val", "metrics=[Bleu_4,METEOR,CIDEr]"]
    for name, more in {"odd": ["limit=15", "diversity=2"], "few": ["limit=1", "metrics=[CIDEr]"]}.items():
        evaluate.run(composed([*plain, *more, f"output={folder / name / 'one'}"], "evaluate"))
        done = call("-m", "src.evaluate", *plain, *more, f"output={folder / name / 'two'}", "devices=2")
        assert done.stdout.count("report with pictures") == 1
        one, two = (read_results(folder / name / which) for which in ("one", "two"))
        assert one.captions == two.captions and len(one.captions) == (15 if name == "odd" else 1)
        assert two.scores.keys() == one.scores.keys()
        for score, value in one.scores.items():
            assert two.scores[score] == (
                pytest.approx(value, rel=1e-5, abs=1e-7) if isinstance(value, float) else value
            ), score
        for column, values in one.columns.items():
            assert two.columns[column] == pytest.approx(values, rel=1e-5), column
        assert one.looks.keys() == two.looks.keys() and one.looks
        for image, look in one.looks.items():
            assert look.words == two.looks[image].words
            assert look.weights == pytest.approx(two.looks[image].weights, abs=2e-3)
        same = ("references", "model_weights", "generation", "split", "limit", "diversity", "not_computed")
        assert {key: one.meta[key] for key in same} == {key: two.meta[key] for key in same}
        assert {p.name for p in (folder / name / "one").iterdir()} == {
            p.name for p in (folder / name / "two").iterdir()
        }
    calibrations = [json.loads((folder / "odd" / which / "calibration.json").read_text()) for which in ("one", "two")]
    assert calibrations[0] == pytest.approx(calibrations[1], rel=1e-3)


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def two(shapes, tmp_path_factory):
    """What two processes end with in each case, from one call for all."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.several"]
    call("-m", *torchrun, str(shapes), str(folder), *several.CASES)
    return folder


@pytest.mark.parametrize("name", several.CASES)
def test_two_processes_end_as_one(two, shapes, tmp_path, name):
    """With half the batch each: the weights, those that are kept, and the validation scores. Where words, looks or
    latents are drawn, each process draws its own; then both processes end alike, having learned."""
    case = several.CASES[name]
    first, second = (torch.load(two / name / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for key, value in first["weights"].items():
        if "running" not in key or case.config == several.LEARNING:
            assert torch.equal(value, second["weights"][key]), f"{key} differs between the processes"
    assert first["learned"] and first["scores"] == second["scores"]
    assert first["said"] == case.val and second["said"] == 0, "each picture is scored once, by one process"
    assert all(torch.equal(value, first["kept"][key]) for key, value in first["weights"].items())
    if not case.equal:
        return
    one = several.trained(case, shapes, tmp_path, 1)
    assert one["weights"].keys() == first["weights"].keys()
    for key, value in one["weights"].items():
        torch.testing.assert_close(
            value, first["weights"][key], atol=1e-5, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
        )
    assert first["scores"] == pytest.approx(one["scores"], rel=1e-4, abs=1e-6)


# ---------------------------------------------------------------- the whole command


BY_LOSS = ("monitor=val/loss", "mode=min")  # which falls at every validation


def settings(shapes: Path, folder: Path, batch: int) -> list[str]:
    """A small training whose end does not depend on how a batch is cut, but for rounding, which a small epsilon would
    make large where gradients are all but 0."""
    return [
        *("data=tsv", f"data.root={shapes}", "data.train=train.tsv", "data.val=val.tsv", "data.test=test.tsv"),
        *("data.min_count=1", "data.workers=0", "data.cache_workers=0", f"data.cache_dir={folder / 'cache'}"),
        *(f"data.batch_size={batch}", "transform.size=32", "encoder=cnn", "encoder.backbone.channels=[8,16]"),
        *(
            "encoder.width=32",
            "embedding.size=16",
            "attention.width=16",
            "decoder.hidden=32",
            "decoder.dropout=0.0",
            "encoder.dropout=0",
        ),
        *(
            "optimizer.lr=0.01",
            "+optimizer.eps=0.001",
            "trainer.max_epochs=2",
            "trainer.precision=32-true",
            "trainer.log_every_n_steps=1",
        ),
        *("evaluate_splits=[val,test]", "validation_metrics=[Bleu_4,CIDEr]", "generation=greedy"),
        *(f"callbacks.{name}.{field}" for name in ("checkpoint", "early_stopping") for field in BY_LOSS),
        *(f"run_dir={folder}/${{name}}", "hydra.run.dir=${run_dir}"),
    ]


def curve(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]


@pytest.fixture(scope="module")
def alone(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    call("-m", "src.train", *settings(shapes, folder, 4), "trainer.accelerator=cpu")
    (run,) = (path.parent for path in folder.glob("*/status.json"))
    return run


@pytest.mark.parametrize(
    "trainer",
    [
        pytest.param(["trainer=ddp_cpu"], id="ddp_cpu"),
        pytest.param(
            ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"], id="fsdp", marks=pytest.mark.slow
        ),
    ],
)
def test_the_command_on_two_processes_does_what_it_does_on_one(alone, shapes, tmp_path, trainer):
    """Batch norm that learns, early stopping, pictures in the logs, the bundle, two evaluated splits; then it is
    resumed. One run folder, one log, one table of scores. By the command in a job's script; resumed, by srun."""
    ours = [*settings(shapes, tmp_path, 2), *trainer]
    done = call("-m", "src.train", *ours, **SCRIPT)
    (run,) = (path.parent for path in tmp_path.glob("*/status.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", run.name], "no process has a name of its own"
    assert not list(tmp_path.rglob("*.part*"))
    assert done.stdout.count("report with pictures") == 2
    assert (run / "train.log").read_text().count(" words") == (alone / "train.log").read_text().count(" words") > 0
    first, second = (load_file(folder / "bundle" / "model.safetensors") for folder in (alone, run))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=2e-4, rtol=2e-3, msg=lambda m, name=name: f"{name}: {m}")
    assert curve(run) == pytest.approx(curve(alone), rel=1e-3, abs=1e-5) and len(curve(run)) == 2
    for split in ("val", "test"):
        mine, its = (read_results(folder, split) for folder in (run, alone))
        assert mine.captions == its.captions and mine.scores["CIDEr"] == pytest.approx(its.scores["CIDEr"], rel=1e-3)
        assert mine.scores["perplexity"] == pytest.approx(its.scores["perplexity"], rel=1e-3)
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/gradient_norm", "eval/val/METEOR", "eval/test/METEOR"} <= set(header)
    (events, *_) = sorted((run / "tensorboard").glob("events.*"))
    logged = events.read_bytes()
    assert all(name in logged for name in (b"val/pictures/3", b"gradients/decoder", b"val/caption_lengths"))
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    more = [f"run_dir='{run}'", "ckpt=last", "~scheduler", "evaluate_splits=[]"]
    by_srun(["src.train", *ours, *more, "trainer.max_epochs=3"], [0, 0])
    if trainer[0] == "trainer=fsdp":  # any trainer goes on from any checkpoint
        plain = [*settings(shapes, tmp_path, 4), "trainer.accelerator=cpu", *more]
        call("-m", "src.train", *plain, "trainer.max_epochs=4")
        call("-m", "src.train", *ours, *more, "trainer.max_epochs=5")
        goes_on = [*settings(shapes, tmp_path, 4), "trainer.accelerator=cpu", *more, f"run_dir='{alone}'"]
        call("-m", "src.train", *goes_on, "trainer.max_epochs=5")
        assert curve(run) == pytest.approx(curve(alone), rel=1e-3) and len(curve(run)) == 5
        call("-m", "src.train", *ours, f"run_dir='{tmp_path / 'trial'}'", "trainer.fast_dev_run=true")
        assert load_file(tmp_path / "trial.fast_dev_run" / "bundle" / "model.safetensors").keys() == first.keys()
        return
    assert len(curve(run)) == 3 and curve(run)[:2] == pytest.approx(curve(alone), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_pictures_are_changed_by_each_process(shapes, tmp_path):
    """Two passes through the model before each step, of which one counts."""
    ours = [*settings(shapes, tmp_path, 2), "trainer=ddp_cpu", "objective=adversarial_training", "data.cache=false"]
    call("-m", "src.train", *ours, "evaluate_splits=[]", **SCRIPT)
    (run,) = (path.parent for path in tmp_path.glob("*/status.json"))
    assert json.loads((run / "status.json").read_text())["state"] == "finished" and len(curve(run)) == 2


def test_a_process_that_is_killed_ends_the_others_and_the_run_can_go_on(shapes, tmp_path):
    ours = [*settings(shapes, tmp_path, 2), "trainer=ddp_cpu", f"run_dir={tmp_path / 'run'}", "evaluate_splits=[]"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "src.train", *ours, "trainer.max_epochs=2000"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as parent:
        until = time.monotonic() + 150
        while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
            assert parent.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        ranks = {Path(f"/proc/{c}/environ").read_bytes().split(b"\0RANK=")[1][:1]: int(c) for c in children}
        os.kill(ranks[b"1"], signal.SIGKILL)
        _, said = parent.communicate(timeout=100)
    assert parent.returncode == 128 + signal.SIGKILL and "error: process 1 was ended by signal 9" in said
    assert not any(Path(f"/proc/{child}").exists() for child in children), "none is left behind"
    epochs = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] + 2
    call("-m", "src.train", *ours, f"trainer.max_epochs={epochs}", "ckpt=last")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_an_error_in_all_processes_is_one_sentence(shapes, tmp_path):
    (tmp_path / "bad.tsv").write_text("image,caption\n")
    ours = [*settings(shapes, tmp_path, 2), "trainer=ddp_cpu", f"data.root={tmp_path}", "data.val=bad.tsv"]
    done = call("-m", "src.train", *ours, "data.train=bad.tsv", "data.test=bad.tsv", expect=1)
    assert "bad.tsv:1" in done.stderr and "Traceback" not in done.stderr
