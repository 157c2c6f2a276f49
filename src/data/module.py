"""TSV → batches. With `src/training.py` this is a batch's whole way from disk to loss."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.data.control import Control, ControlError, check_tags, with_tags
from src.data.features import cached_features
from src.data.regions import RegionFiles, padded
from src.data.sides import swap_sides
from src.data.tokenizer import Tokenizer
from src.data.transforms import AS_IT_IS, Augmentation, Preprocess, Variation
from src.data.tsv import Captions, OnBadRow, Verify, check_fractions, read_tsv, split_by_image, write_skipped
from src.data.vocabulary import PAD, UNK, Vocabulary
from src.encoders.base import Encoder, Features
from src.encoders.precomputed import Regions
from src.ranges import at_least

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


class Batch(NamedTuple):
    """B images with up to Q captions each. Ragged Q and T are padded and masked."""

    images: Tensor | Regions | Features
    """(B, 3, H, W) uint8 pixels, (B, R, D) cached output of the frozen stages, regions computed beforehand, or what the
    encoder made of any of these."""
    index: Tensor  # type: ignore[assignment]
    """(B,) each image's row in its split."""
    tokens: Tensor
    """(B, Q, T) ids: BOS, control tokens, words, EOS, padding."""
    mask: Tensor
    """(B, Q, T) True on real tokens."""
    prefix: Tensor
    """(B, Q) how many of the first tokens are given rather than predicted: 1, the BOS, or more with control tokens."""
    references: list[list[str]]
    """The images' captions as strings, for objectives that need them."""


class Item(NamedTuple):
    """An image of a split, as an order asks for it."""

    image: int
    captions: Sequence[int]
    """Which of its captions."""
    draw: int | None = None
    """The seed of its variation, in training; None: as it is."""


class CaptionedImages(Dataset[Batch]):
    """One split: images, and their captions as ids in one flat buffer with offsets. With `augment` an item that has a
    draw is varied, and what the captions of a mirrored picture say is in further rows of the buffer. With `control` the
    captions' control tokens stand beside the buffer, those that the vocabulary has; an item that has a draw may lose
    some of them."""

    def __init__(
        self,
        captions: Captions,
        root: Path,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        longest: int,
        augment: Augmentation | None = None,
        regions: RegionFiles | None = None,
        control: Control | None = None,
    ) -> None:
        self.root, self.preprocess, self.regions, self.control = root, preprocess, regions, control
        self.augment = augment = augment or Augmentation()  # nothing
        self.images, self.captions = captions.images, captions.captions
        self.first_caption = np.cumsum([0, *map(len, captions.captions)])

        def encode(text: str) -> list[int]:
            return vocabulary.encode(tokenizer.tokens(text)[:longest])

        texts = [(image, text) for image, texts in enumerate(captions.captions) for text in texts]
        encoded = [encode(text) for _, text in texts]
        self.mirrored = list(range(len(encoded)))  # the row of each caption where its picture is mirrored
        self.never_mirrored: set[int] = set()
        for row, (image, text) in enumerate(texts):
            if augment.flip and (other := swap_sides(text)) != text:
                self.mirrored[row] = len(encoded)
                encoded.append(encode(other))
                # A word whose counterpart the vocabulary lacks would be taught as <unk>.
                lost = encoded[-1].count(UNK) > encoded[row].count(UNK)
                if lost or augment.flip_captions == "leave":
                    self.never_mirrored.add(image)
        self.tokens = np.fromiter((token for ids in encoded for token in ids), np.int32)
        self.lengths = np.array([len(ids) for ids in encoded])
        self.offsets = np.cumsum([0, *self.lengths])
        self.controls: list[list[int]] = []  # of each row of the buffer
        if control is not None:
            known, tags = vocabulary.control_index, [tag for each in captions.tags for tag in each]
            of = dict(enumerate(tags)) | {self.mirrored[row]: tag for row, tag in enumerate(tags)}
            for row, length in enumerate(self.lengths.tolist()):
                names = control.tokens(of[row], length - 2)  # without BOS and EOS
                self.controls.append([known[name] for name in names if name in known])
        self.features: Sequence[np.ndarray] | None = None
        """Cached features (images, R, D) of each view."""

    def __len__(self) -> int:
        return len(self.images)

    def _drawn(self, image: int, seed: int | Sequence[int]) -> Variation:
        drawn = self.augment.draw(seed)
        return drawn._replace(flip=False) if image in self.never_mirrored else drawn

    def cached_variation(self, image: int, view: int) -> Variation:
        """How an image is varied in a cached view, in any run: not at all in the first."""
        return self._drawn(image, [image, view]) if view else AS_IT_IS

    def _view(self, item: Item) -> int:
        return item.draw % len(self.features) if self.features and item.draw is not None else 0

    def _variation(self, item: Item) -> Variation:
        if self.features is not None:
            return self.cached_variation(item.image, self._view(item))
        return AS_IT_IS if item.draw is None else self._drawn(item.image, item.draw)

    def __getitem__(self, items: Sequence[Item]) -> Batch:
        """Items → a whole Batch: nothing is collated caption by caption."""
        index = [item.image for item in items]
        variations = [self._variation(item) for item in items]
        images: Tensor | Regions
        if self.features is not None:
            images = torch.from_numpy(np.stack([self.features[self._view(item)][item.image] for item in items]))
        elif self.regions is not None:
            images = padded([self.regions.read(self.images[i]) for i in index])
        else:
            paths = [self.root / self.images[i] for i in index]
            images = torch.stack([self.preprocess.open(*each) for each in zip(paths, variations, strict=True)])
        rows = [[self.first_caption[item.image] + caption for caption in item.captions] for item in items]
        references = [self.captions[i] for i in index]
        for b, variation in enumerate(variations):
            if variation.flip:
                rows[b] = [self.mirrored[row] for row in rows[b]]
                references[b] = [swap_sides(text) for text in references[b]]
        given = [self._given(item, captions) for item, captions in zip(items, rows, strict=True)]
        shape = (len(rows), max(map(len, rows)))
        starts, lengths, prefix = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.ones(shape, np.int64)
        for b, captions in enumerate(rows):
            sizes = self.lengths[captions] + [len(ids) for ids in given[b]]
            # The longest first: what is left of a batch after some words is then a corner of it.
            order = np.argsort(-sizes, kind="stable")
            given[b] = [given[b][i] for i in order]
            starts[b, : len(captions)], lengths[b, : len(captions)] = self.offsets[captions][order], sizes[order]
            prefix[b, : len(captions)] += [len(ids) for ids in given[b]]
        steps = np.arange(lengths.max())
        mask = steps < lengths[..., None]
        # Control tokens lie between BOS and what follows it in the buffer.
        places = starts[..., None] + np.where(steps < prefix[..., None], 0, steps - prefix[..., None] + 1)
        tokens = np.where(mask, self.tokens[np.where(mask, places, 0)], PAD).astype(np.int64)
        for b, ids_of in enumerate(given):
            for q, ids in enumerate(ids_of):
                tokens[b, q, 1 : 1 + len(ids)] = ids
        return Batch(
            images,
            torch.tensor(index),
            torch.from_numpy(tokens),
            torch.from_numpy(mask),
            torch.from_numpy(prefix),
            references,
        )

    def _given(self, item: Item, rows: Sequence[int]) -> list[list[int]]:
        """The control tokens of an item's captions, of which a training item keeps what its draw says."""
        if self.control is None:
            return [[] for _ in rows]
        given = [self.controls[row] for row in rows]
        return given if item.draw is None else self.control.kept(given, item.draw)


class TrainingOrder(Sampler[list[Item]]):
    """Which captions come when, and each item's draw: a function of (seed, epoch, step, rank, world) alone, so that a
    resumed run sees what an uninterrupted one would have. Every caption once an epoch: an image's captions are
    shuffled, cut into groups of `captions_per_image`, and the groups shuffled. Of every `BUCKET` steps' groups, those
    of like length then come together, and the batches are shuffled. All ranks take equally many steps.

    Args:
        lengths: of each image's captions, in tokens.
        batch_size: images (groups) a batch and rank.
        captions_per_image: captions of an image that are learned from together.
        seed: of the whole order.
        rank: of this process.
        world: number of processes.
    """

    BUCKET = 20

    def __init__(
        self,
        lengths: Sequence[Sequence[int]],
        batch_size: int,
        captions_per_image: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.captions_per_image, self.rank, self.world = captions_per_image, rank, world
        self.epoch = 0
        self.start = 0  # the step that the next epoch begins with, when one is resumed in its middle
        groups = sum(-(-len(each) // captions_per_image) for each in lengths)
        whole, rest = divmod(groups, batch_size * world)
        self.steps = whole + (rest >= world)

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Item]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        groups, words = [], []
        for image, lengths in enumerate(self.lengths):
            order = rng.permutation(len(lengths)).tolist()
            for i in range(0, len(order), self.captions_per_image):
                groups.append(Item(image, order[i : i + self.captions_per_image]))
                own = [lengths[caption] for caption in groups[-1].captions]
                words.append((max(own), sum(own)))
        draws = rng.integers(2**63, size=len(groups)).tolist()
        # Ranks take equally many: what is left over is cut off here, at random, not from a window's longest captions.
        order = rng.permutation(len(groups))[: len(groups) // self.world * self.world]
        every = self.batch_size * self.world
        longest, total = np.array(words).T
        # Nearly alike in the longest caption, which padding follows, and then in all of them.
        ranks = np.lexsort(np.array([total, longest // 3])).argsort()
        windows = [order[i : i + self.BUCKET * every] for i in range(0, len(order), self.BUCKET * every)]
        order = np.concatenate([window[ranks[window].argsort()] for window in windows])
        batches = [order[i : i + every] for i in range(0, len(order), every)]
        full = rng.permutation(len(order) // every).tolist()
        start, self.start = self.start, 0
        for step in range(start, self.steps):
            chunk = batches[full[step]] if step < len(full) else batches[step]
            chunk = chunk[np.argsort(-longest[chunk], kind="stable")]
            yield [groups[i]._replace(draw=draws[i]) for i in chunk[self.rank :: self.world]]


class EvaluationOrder(Sampler[list[Item]]):
    """Every image once, in order, with all its captions; rank r takes images r, r + world, … A rank for which there is
    none gets the first image, which is not its own."""

    def __init__(self, captions: Sequence[int], batch_size: int, rank: int = 0, world: int = 1) -> None:
        every = [Item(image, range(count)) for image, count in enumerate(captions)]
        self.items = every[rank::world] or every[:1]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.items) // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for start in range(0, len(self.items), self.batch_size):
            yield self.items[start : start + self.batch_size]


def check_fields(data: Mapping[str, Any]) -> None:
    """Of `CaptionData`'s arguments, refuse what needs no file to be refused.

    Raises:
        ValueError: a number out of its range, no TSV, or TSVs that contradict `split`.
    """
    counts = ("min_count", "max_size", "batch_size", "captions_per_image", "max_tokens", "eval_batch_size")
    at_least(1, "data", **{name: data[name] for name in counts})
    at_least(0, "data", workers=data["workers"])
    given, split = [name for name in SPLITS if data[name]], data["split"]
    if not given:
        raise ValueError(
            "data: no TSV given; set data.train=FILE (and data.val, data.test, or data.split=[0.9,0.05,0.05])"
        )
    if split is not None:
        if given != ["train"]:
            raise ValueError(f"data.split divides one file: give data.train alone, not {', '.join(given)}")
        if not 2 <= len(split) <= len(SPLITS):
            raise ValueError(f"data.split={list(split)}: give the fractions of train, val and perhaps test")
        check_fractions(split)


class CaptionData(lightning.LightningDataModule):
    """A data set in TSV form (`img_path<TAB>caption`), its vocabulary, and its loaders.

    Args:
        root: the folder that image paths and the TSVs are relative to.
        train, val, test: TSV files; any may be None. Only `train` and `split` given: one file, split by image.
        split: fractions (train, val, test) for one file, by image.
        split_seed: of that division alone, so that runs with other seeds share their test pictures.
        preprocess: how a picture becomes pixels, and how those of the training loader are varied.
        tokenizer: how a caption becomes words.
        min_count, max_size: limits of the vocabulary, built from the training captions only.
        vocabulary: one that exists already, instead.
        extend: True adds the training captions' words that it lacks, within the same limits, False only counts what
            they say; None leaves it as it is.
        batch_size: images a training batch; each comes with up to `captions_per_image` captions.
        captions_per_image: captions of an image that are learned from together; None means all.
        max_tokens: longer training captions are cut there.
        eval_batch_size: images an evaluation batch.
        workers: loading processes; features from the cache need none.
        verify: none, exists or decode: how images are checked.
        on_bad_row: error, or skip (counted, and listed in `skipped.tsv`).
        cache_dir: where verified images and cached features are remembered.
        regions: of the images, computed beforehand: these are read, and checked by `verify`, instead of the images.
        control: which control tokens captions are given.
        seed: of the order.
    """

    def __init__(
        self,
        root: str | Path,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        split: Sequence[float] | None = None,
        split_seed: int = 0,
        min_count: int = 5,
        max_size: int | None = None,
        vocabulary: Vocabulary | None = None,
        extend: bool | None = None,
        batch_size: int = 32,
        captions_per_image: int | None = None,
        max_tokens: int = 40,
        eval_batch_size: int = 64,
        workers: int = 0,
        verify: Verify = "exists",
        on_bad_row: OnBadRow = "error",
        cache_dir: str | Path = "cache",
        regions: RegionFiles | None = None,
        control: Control | None = None,
        seed: int = 0,
    ) -> None:
        check_fields(locals())
        super().__init__()
        self.root, self.cache_dir = Path(root), Path(cache_dir)
        self.preprocess, self.tokenizer = preprocess, tokenizer
        self.batch_size, self.eval_batch_size, self.captions_per_image = batch_size, eval_batch_size, captions_per_image
        self.max_tokens, self.workers, self.seed = max_tokens, workers, seed
        self.verify, self.on_bad_row, self.regions, self.control = verify, on_bad_row, regions, control
        files = {"train": train, "val": val, "test": test}
        self.tables: dict[str, Captions] = {}
        if split is not None:
            parts = split_by_image(self._read(str(train)), list(split), split_seed)
            self.tables = {name: part for name, part in zip(SPLITS, parts, strict=False) if part.images}
        else:
            self.tables = {name: self._read(file) for name, file in files.items() if file}
        if control is not None and control.tags:
            check_tags(self.tables, {name: str(self.root / (files[name] or str(train))) for name in self.tables})
        if vocabulary is None or extend is not None:
            if "train" not in self.tables:
                raise ValueError("data.train is not set: the vocabulary is built from the training captions")
            words = self.training_tokens()
            controls = control.counts(self.tables["train"], tokenizer, max_tokens) if control is not None else {}
            if vocabulary is None:
                vocabulary = Vocabulary.build(words, min_count, max_size, controls)
            else:
                vocabulary = vocabulary.extended(words, min_count, max_size, bool(extend), controls)
        self.vocabulary = vocabulary
        self._splits: dict[str, CaptionedImages] = {}
        self._training: BatchLoader | None = None
        self._resume_at = 0

    def _read(self, file: str) -> Captions:
        path = self.root / file
        table = read_tsv(
            path,
            self.root,
            on_bad_row=self.on_bad_row,
            verify=self.verify,
            cache_dir=self.cache_dir / "verified",
            look=self.regions.problems if self.regions else None,
        )
        if self.regions:
            self.regions.read(table.images[0])  # files of another width are refused before any work
        listed = self.cache_dir / f"{self.root.resolve().name}.{path.stem}.skipped.tsv"
        if table.skipped:
            write_skipped(listed, table.skipped)
        else:
            listed.unlink(missing_ok=True)  # an earlier list is no longer true
        return table

    def training_tokens(self) -> Iterator[list[str]]:
        """The words of each training caption."""
        return (self.tokenizer.tokens(text) for texts in self.tables["train"].captions for text in texts)

    def _table(self, name: str) -> Captions:
        if name not in self.tables:
            raise ValueError(f"split={name}: this data has {', '.join(self.tables)}; set data.{name}=FILE")
        return self.tables[name]

    def restrict(self, name: str, tags: Sequence[str]) -> None:
        """From now on the split `name` has only the captions that carry all these tags, as tokens, and their images.

        Raises:
            ValueError: there is no such split, or no such caption in it.
        """
        try:
            self.tables[name] = with_tags(self._table(name), tags)
        except ControlError as error:
            raise ControlError(f"split {name}: {error}") from error
        self._splits.pop(name, None)

    def images(self, name: str) -> CaptionedImages:
        """The split `name`, tokenized on first use.

        Raises:
            ValueError: there is no such split.
        """
        table = self._table(name)
        if name not in self._splits:
            self._splits[name] = CaptionedImages(
                table,
                self.root,
                self.preprocess,
                self.tokenizer,
                self.vocabulary,
                self.max_tokens,
                self.preprocess.augment if name == "train" else None,
                self.regions,
                self.control,
            )
        return self._splits[name]

    def has_picture(self, image: str) -> bool:
        """Whether there is a file to show: of regions computed beforehand there need be none."""
        return self.regions is None or (self.root / image).is_file()

    def cache_features(
        self, encoder: Encoder, backbone_config: Mapping[str, Any], names: Sequence[str], views: int = 1, **options: Any
    ) -> None:
        """From now on read the frozen stages' output from the cache, building what it lacks: `cached_features`. Of the
        training images in so many views, of which each item's draw picks one; evaluation sees the first."""
        for name in names:
            split = self.images(name)
            split.features = [
                cached_features(
                    encoder,
                    backbone_config,
                    self.root,
                    split.images,
                    self.preprocess,
                    self.cache_dir / "features",
                    variations=[split.cached_variation(image, view) for image in range(len(split))],
                    **options,
                )
                for view in range(views if name == "train" else 1)
            ]

    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: CaptionedImages, order: Sampler[Any]) -> "BatchLoader":
        workers = 0 if split.features is not None else self.workers
        return BatchLoader(
            split,
            batch_size=None,  # the order gives whole batches
            sampler=order,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> "BatchLoader":
        split = self.images("train")
        own = split.lengths[: split.first_caption[-1]]  # not those of mirrored pictures' captions
        every = [each.tolist() for each in np.split(own, split.first_caption[1:-1])]
        together = self.captions_per_image or max(map(len, every))
        order = TrainingOrder(every, self.batch_size, together, self.seed, *self._world())
        order.start, self._resume_at = self._resume_at, 0
        self._training = self._loader(split, order)
        return self._training

    # Lightning keeps these in checkpoints and restores them before it asks for the loader: a run that was stopped in
    # the middle of an epoch goes on there.
    def state_dict(self) -> dict[str, int]:
        return {"done": self._training.done % len(self._training) if self._training else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resume_at = state_dict["done"]

    def evaluation_dataloader(self, name: str, rank: int = 0, world: int = 1) -> "BatchLoader":
        """Every image of a split once, with all its captions; or this rank's share of them."""
        split = self.images(name)
        order = EvaluationOrder([len(c) for c in split.captions], self.eval_batch_size, rank, world)
        return self._loader(split, order)

    def val_dataloader(self) -> "list[BatchLoader]":
        return [self.evaluation_dataloader("val", *self._world())] if "val" in self.tables else []


def _as_it_is(batch: Any) -> Any:
    return batch


class BatchLoader(DataLoader[Batch]):
    """A DataLoader that knows how many batches of its epoch it has given out."""

    done = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.done = getattr(self.sampler, "start", 0)
        for batch in super().__iter__():
            self.done += 1
            yield batch
