"""Every choice in conf/ and every recipe in experiments/ composes; each recipe trains a step on tiny data."""

import csv
import inspect
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from src import help
from src.captioner import Captioner
from src.check import CHECKS
from src.config import CONF, ROOT, plain, run_name, setup
from src.data.module import CaptionData
from src.data.transforms import Preprocess
from src.model import TRAINING, instantiate, locate
from src.prepare.tagged import write_tagged
from src.runs import read_run
from src.train import NOT_OF_THE_DATA, train
from src.training import CaptioningModule

CHOICES = sorted(p.relative_to(CONF).with_suffix("") for p in Path(CONF).glob("*/*.yaml"))
EXPERIMENTS = sorted(
    str(p.relative_to(ROOT / "experiments").with_suffix("")) for p in (ROOT / "experiments").rglob("*.yaml")
)


def composed(overrides: list[str], name: str = "train") -> dict:
    setup()
    with initialize_config_dir(CONF, version_base="1.3"):
        return plain(compose(name, overrides=overrides))


def tiny(shapes: Path, folder: Path) -> list[str]:
    """Overrides that put any recipe on the tiny data, for one step of everything."""
    return [
        "data=tsv",
        f"data.root={shapes}",
        "data.train=train.tsv",
        "data.val=val.tsv",
        "data.test=test.tsv",
        "data.split=null",
        "data.nouns=nouns.json",
        "data.min_count=1",
        f"data.cache_dir={folder / 'cache'}",
        "data.cache_workers=0",
        "data.workers=0",
        f"run_dir={folder / 'run'}",
        "transform.size=64",
        "trainer.fast_dev_run=true",
        "trainer.enable_progress_bar=false",
    ]


def chosen(choice: Path) -> dict:
    """The configuration of the command that has this choice's group."""
    command = next(name for name in CHECKS if str(choice.parent) in help.groups(name))
    return composed([f"{choice.parent}={choice.name}", "data.root=somewhere"], command)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_choice_composes(choice):
    config = chosen(choice)
    assert config[str(choice.parent)], "the choice holds something"


def test_every_target_exists():
    def targets(node):
        if isinstance(node, dict):
            yield from ([node["_target_"]] if "_target_" in node else [])
            for value in node.values():
                yield from targets(value)

    found = {target for choice in CHOICES for target in targets(chosen(choice))}
    for target in found:
        locate(target, TRAINING)
    assert len(found) > 15


ENCODERS = sorted(p.stem for p in Path(CONF).glob("encoder/*.yaml"))
FINE_TUNED = ["encoder.frozen=1", "encoder.learning_rate=1e-4", "decoder=lstm_attn"]


@pytest.mark.parametrize("options", [["encoder.frozen=true", "encoder.pool=true", "decoder=lstm"], FINE_TUNED], ids=str)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_step_of_every_encoder(encoder, options, shapes, tmp_path):
    """Training and captioning, frozen and fine-tuned, a fixed-length vector and a grid."""
    has_backbone = encoder != "precomputed"
    if encoder.endswith("_multiscale"):  # several maps are no one vector; the decoder takes the mean of their regions
        options = [option for option in options if option != "encoder.pool=true"]
    if not has_backbone:
        options = [option for option in options if not option.startswith("encoder.")]
    else:
        options = [*options, "encoder.backbone.weights=random"]
    train(composed([f"encoder={encoder}", *options, "generation=greedy", *tiny(shapes, tmp_path)]))
    captions = (tmp_path / "run.fast_dev_run" / "eval" / "val" / "captions.tsv").read_text()
    assert len(captions.splitlines()) == 4
    kept = [path.read_text() for path in (tmp_path / "cache").glob("features/*/key.json")]
    stages = f'"stages": {1 if "encoder.frozen=1" in options else ""}'
    assert bool(kept) == has_backbone and all(stages in key for key in kept), "the frozen stages were cached"


DECODERS = sorted(p.stem for p in Path(CONF).glob("decoder/*.yaml"))


@pytest.mark.parametrize("encoder", ["efficientnet_lite0", "cnn"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_step_of_every_decoder(encoder, decoder, shapes, tmp_path):
    train(composed([f"encoder={encoder}", f"decoder={decoder}", "generation=greedy", *tiny(shapes, tmp_path)]))
    assert (tmp_path / "run.fast_dev_run" / "bundle" / "model.safetensors").exists()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_step_of_every_experiment(experiment, shapes, tmp_path):
    config = composed([f"experiments={experiment}", *tiny(shapes, tmp_path)])
    config["evaluate_splits"] = ["val"]
    if config["init"]:  # another recipe's run
        config["init"] = None
        if "from_random" in config["objective"]:
            config["objective"]["from_random"] = True
    if teachers := config["objective"].get("teachers"):  # other recipes' runs
        recipe = teachers[0].removeprefix("runs/").rpartition("-")[0]
        train(composed([f"experiments={recipe}", *tiny(shapes, tmp_path / "teacher"), "evaluate_splits=[]"]))
        config["objective"]["teachers"] = [str(tmp_path / "teacher" / "run.fast_dev_run")]
    if (config.get("control") or {}).get("tags"):  # both languages
        for part in ("train", "val"):
            table = f"{shapes / part}.tsv"
            config["data"][part] = str(tmp_path / f"{part}_both.tsv")
            write_tagged(Path(config["data"][part]), [f"en={table}", f"zh={table}"])
    train(config)
    scores = (tmp_path / "run.fast_dev_run" / "eval" / "val" / "scores.json").read_text()
    assert '"objects_named"' in scores and '"METEOR"' in scores


def test_experiments_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert composed(["experiments=demo"])["name"] == "demo"


def test_a_vector_encoder_with_an_attending_decoder_is_refused_in_a_sentence(shapes, tmp_path):
    overrides = ["encoder=cnn", "encoder.backbone.head=[32]", *tiny(shapes, tmp_path)]
    with pytest.raises(
        ValueError, match=r"choose decoder=lstm or gru, or give the encoder a grid \(encoder.pool=false"
    ):
        train(composed(overrides))
    train(composed([*overrides, "decoder=lstm"]))


def test_no_attention_for_an_attending_decoder_is_refused(shapes, tmp_path):
    with pytest.raises(ValueError, match="choose attention=additive or another"):
        train(composed(["encoder=cnn", "~attention", *tiny(shapes, tmp_path)]))


def test_unknown_arguments_and_foreign_classes_are_refused():
    with pytest.raises(ValueError, match="unexpected keyword argument 'hiden'"):
        instantiate({"_target_": "src.generation.GreedySearch", "hiden": 3})
    for target in ("os.system", "subprocess.Popen", "torch.optim.AdamW", "src.bundle.os", "src.data.tsv.Path"):
        with pytest.raises(ValueError, match="_target_"):
            locate(target)
    assert locate("torch.optim.AdamW", TRAINING)


def test_fields_that_the_code_reads_are_all_there_is():
    """The data group's fields are the data module's arguments, or read by name in the source."""
    source = "".join(p.read_text() for p in (ROOT / "src").rglob("*.py"))
    for name in CHECKS:
        config = composed(["data.root=x"] if name == "train" else ["model=x"], name)
        for field in config:
            assert f'["{field}"]' in source or f'.get("{field}")' in source, field
        taken = {*inspect.signature(CaptionData).parameters, *NOT_OF_THE_DATA}
        assert set(config["data"]) <= taken


def test_a_run_without_hydra_has_a_name():
    assert run_name() == "unnamed"


@pytest.mark.parametrize(
    "options",
    [
        ["data.cache=false"],
        ["transform=crop"],
        ["transform=letterbox"],
        ["transform=resize", "transform.resize=72"],
        ["transform=augmented", "transform.fit=letterbox", "data.workers=2"],
        *(
            [f"attention={path.stem}", f"decoder={decoder}"]
            for path in sorted(Path(CONF).glob("attention/*.yaml"))
            for decoder in ("lstm_attn", "updown")
        ),
        ["objective.scheduled_sampling=0.5"],
        ["objective=adversarial_training", "data.cache=false"],
        [
            "objective=adversarial_training",
            "encoder.frozen=false",
            "defence=random_resize",
            "decoder=lstm",
            "encoder.pool=true",
            "data.cache=false",
            "objective.norm=l2",
            "objective.steps=2",
        ],
        ["generation=beam"],
        ["objective=self_critical", "objective.from_random=true", "objective.bleu=0.5", "objective.baseline=greedy"],
        ["objective=variational", "latent.size=8", "generation=sample"],
        ["objective=variational", "decoder=transformer", "objective.label_smoothing=0.1"],
        ["objective=contrastive", "matcher.size=16", "matcher.likelihood=0.2", "callbacks.checkpoint.monitor=val/rsum"],
        [
            "objective=contrastive",
            "objective.caption_weight=0",
            "objective.from_random=true",
            "objective.hard_weight=1",
        ],
        ["objective=adversarial", "objective.from_random=true", "objective.estimator=policy"],
        ["objective=adversarial", "objective.from_random=true", "decoder=updown", "objective.temperature=1.0"],
        ["generation=sample", "generation.captions=3", "generation.top_p=0.9"],
        ["generation=diverse_beam", "decoder=gru"],
        ["generation=consensus", "generation.samples=3", "generation.temperature=0.5", "generation.seed=1"],
        ["generation=constrained", "generation.include=[red|blue]", "generation.exclude=[circle]"],
        ["trainer.deterministic=true", "trainer.max_time=00:00:05:00"],
        ["objective.attention_penalty=1.0", "data.verify=decode"],
        ["encoder.grids=[1]", "encoder=efficientnet_lite0"],
        ["embedding=glove", "embedding.size=24", "embedding.frozen=true", "trainer.precision=bf16-mixed"],
        ["embedding=glove", "decoder=lstm", "decoder.tied=true"],
        ["embedding=cbow", "embedding.size=24", "embedding.frozen=true", "embedding.seed=1", "embedding.negative=3"],
        ["embedding=cbow", "embedding.skip_gram=true", "embedding.window=2", "embedding.epochs=2", "decoder.tied=true"],
        ["embedding=frequency", "embedding.size=24", "embedding.weighting=inverse", "decoder=lstm"],
        ["control=length", "control.dropout=0.5"],
        ["control=tags", "control.validate=zh", "data.train=tagged.tsv", "data.val=tagged.tsv", "tokenizer=mixed"],
        [
            *("objective=self_critical", "objective.from_random=true", "control=tags", "control.default=en"),
            *("data.train=tagged.tsv", "data.val=tagged.tsv", "tokenizer=mixed", "decoder=transformer"),
        ],
        ["control=length_tags", "data.train=tagged.tsv", "decoder=transformer", "transform=augmented"],
        ["control=length", "latent=gaussian", "generation=sample"],
        ["tokenizer=rjieba"],
        ["encoder=efficientnet_lite0_multiscale", "encoder.merge=pyramid", "encoder.sides=[4,null,2]"],
        ["defence=jpeg", "defence.quality=50"],
        ["defence=random_resize", "defence.least=0.7", "defence.most=1.1", "defence.seed=1", "data.cache=false"],
    ],
    ids=" ".join,
)
def test_a_step_with_each_option(options, shapes, tmp_path):
    plainly = ["encoder=cnn", "encoder.frozen=true", "encoder.width=32", "generation=greedy"]
    train(composed([*plainly, *tiny(shapes, tmp_path), *options]))
    assert (tmp_path / "run.fast_dev_run" / "bundle" / "model.safetensors").exists()
    if "generation=constrained" in options:
        captions = (tmp_path / "run.fast_dev_run" / "eval" / "val" / "captions.tsv").read_text().splitlines()
        assert all(("red" in c or "blue" in c) and "circle" not in c for c in captions)
    assert (tmp_path / "cache" / "features").exists() == ("data.cache=false" not in options)


def test_augmentation_is_trained_with_and_evaluated_without(shapes, tmp_path, monkeypatch, caplog):
    """Training takes varied pixels; validation's features are those that a run without augmentation cached."""
    taken = []
    original = CaptioningModule.training_step
    monkeypatch.setattr(
        CaptioningModule, "training_step", lambda self, batch, i: taken.append(batch) or original(self, batch, i)
    )
    plainly = ["encoder=cnn", "encoder.frozen=true", "encoder.width=32", "generation=greedy", *tiny(shapes, tmp_path)]
    train(composed(plainly))
    cached = sorted((tmp_path / "cache" / "features").glob("*/regions.npy"))
    with caplog.at_level("INFO"):
        train(composed([*plainly, "transform=augmented"]))
    assert sorted((tmp_path / "cache" / "features").glob("*/regions.npy")) == cached
    assert [batch.images.dim() for batch in taken] == [3, 4]
    assert caplog.text.count("training pictures vary") == 1
    captioner = Captioner.load(tmp_path / "run.fast_dev_run" / "bundle")
    assert captioner.preprocess.augment == instantiate(composed(["transform=augmented"])["transform"]).augment
    path = shapes / "images" / "00.png"
    assert torch.equal(captioner.preprocess.open(path), Preprocess(64).open(path))


def test_several_cached_views_are_trained_with_and_the_plain_one_is_evaluated(shapes, tmp_path, monkeypatch, caplog):
    """With flip=1 and two views, the picture and its mirror image; a second run and plain ones read the same caches."""
    taken = []
    original = CaptioningModule.training_step
    monkeypatch.setattr(
        CaptioningModule, "training_step", lambda self, batch, i: taken.append(batch) or original(self, batch, i)
    )
    plainly = ["encoder=cnn", "encoder.frozen=true", "encoder.width=32", "generation=greedy", *tiny(shapes, tmp_path)]
    mirror = ["transform=augmented", "transform.augment.flip=1", "transform.augment.crop=1", "data.cache_views=2"]
    train(composed(plainly))
    cached = set((tmp_path / "cache" / "features").glob("*/regions.npy"))
    for _ in range(2):
        with caplog.at_level("INFO"):
            train(composed([*plainly, *mirror]))
    assert len(cached) == 2 and len(set((tmp_path / "cache" / "features").glob("*/regions.npy")) - cached) == 1
    assert caplog.text.count("data.cache_views=2: ") == 2 and "anew every epoch" not in caplog.text
    plain, first, again = taken
    assert torch.equal(first.images, again.images) and torch.equal(first.index, plain.index)
    same = [torch.equal(a, b) for a, b in zip(first.images, plain.images, strict=True)]
    assert 0 < sum(same) < len(same), "some of the pictures are as they are, others are not"


def test_a_run_that_is_there_is_trained_anew_only_on_request(shapes, tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_text("an earlier training")
    small = ["encoder=cnn", "encoder.width=32", "generation=greedy", "trainer.max_epochs=1", "evaluate_splits=[]"]
    overrides = [*small, *tiny(shapes, tmp_path), "trainer.fast_dev_run=false", "logger=csv"]
    with pytest.raises(ValueError, match="add ckpt=last to go on"):
        train(composed(overrides))
    assert last.read_text() == "an earlier training"
    train(composed([*overrides, "overwrite=true"]))
    assert (tmp_path / "run" / "bundle" / "model.safetensors").exists()


def test_the_average_of_the_weights_is_what_is_kept(shapes, tmp_path):
    """An average that nothing is added to after its first step is the model of one step; no score selects it."""

    def weights(name, *overrides):
        config = composed(
            [
                *tiny(shapes, tmp_path),
                *("encoder=cnn", "encoder.backbone.channels=[8,8]", "trainer.fast_dev_run=false", "data.batch_size=8"),
                *("callbacks=averaged", "callbacks.averaging.update_every_n_steps=1", "callbacks.pictures=null"),
                *("callbacks.checkpoint.monitor=null", "callbacks.early_stopping=null", "evaluate_splits=[]"),
                *("~scheduler", "logger=csv", f"run_dir={tmp_path / name}", "trainer.precision=32-true", *overrides),
            ]
        )
        score = train(config)
        run = read_run(tmp_path / name, name, "val")
        assert run.get("best") == score
        if name != "once":  # which ends before its validation
            with open(tmp_path / name / "metrics.csv", newline="") as file:
                scores = [float(row["val/CIDEr"]) for row in csv.DictReader(file) if row["val/CIDEr"]]
            assert (run["monitor"], scores[-1]) == ("val/CIDEr", score), "nothing was selected: the last epoch's"
        return Captioner.load(tmp_path / name).model.state_dict()

    once = weights("once", "+trainer.max_steps=1", "callbacks.averaging.decay=0.5")
    kept = weights("kept", "trainer.max_epochs=2", "callbacks.averaging.decay=1.0")
    last = weights("last", "trainer.max_epochs=2", "callbacks.averaging.decay=0.0")
    assert all(torch.equal(kept[name], tensor) for name, tensor in once.items() if tensor.is_floating_point())
    counters = [name for name, tensor in once.items() if not tensor.is_floating_point()]
    assert counters and all(torch.equal(kept[name], last[name]) for name in counters), "counted on, not averaged"
    assert not torch.equal(last["decoder.word.weight"], kept["decoder.word.weight"])
