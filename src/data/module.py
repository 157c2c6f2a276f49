"""TSV → batches. With `src/training.py` this is a batch's whole way from disk to loss."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.data.control import Control, ControlError, by_default, check_tags, with_tags
from src.data.features import cached_features, features_key
from src.data.images import ImageError, Pictures
from src.data.leaks import Leaks, exact_leaks, leaks_told, write_leaks
from src.data.regions import RegionFiles, padded
from src.data.shards import (
    OnBadShard,
    ShardError,
    ShardFeatures,
    ShardImages,
    Shards,
    check_features,
    found_shards,
    is_address,
)
from src.data.sides import names_side, swap_sides
from src.data.table import Captions, Words, ranges, words_of
from src.data.tokenizer import Tokenizer
from src.data.transforms import AS_IT_IS, Augmentation, Preprocess, Variation
from src.data.tsv import OnBadRow, Verify, check_fractions, read_tsv, split_by_image, write_skipped
from src.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from src.encoders.base import Encoder, Features
from src.encoders.precomputed import Regions
from src.interruption import is_first, undisturbed
from src.ranges import at_least

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
Form = Literal["tsv", "shards"]


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
    """One split: images, and their captions as words in one flat buffer with offsets, which the vocabulary makes ids as
    a batch is made. With `augment` an item that has a draw is varied, and what the captions of a mirrored picture say
    stands beside the buffer. With `control` the captions have control tokens, those that the vocabulary has; an item
    that has a draw may lose some of them."""

    def __init__(
        self,
        captions: Captions,
        words: Words,
        root: Path,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        longest: int,
        augment: Augmentation | None = None,
        regions: RegionFiles | None = None,
        control: Control | None = None,
        shards: Shards | None = None,
        skip: bool = False,
    ) -> None:
        self.root, self.preprocess, self.regions, self.control = root, preprocess, regions, control
        self.shards = None if shards is None else ShardImages(shards, captions.images)
        self.skip, self.lost = skip, 0
        self.augment = augment = augment or Augmentation()  # nothing
        self.images, self.captions, self.labels = captions.images, captions.captions, captions.labels
        self.first_caption, self.longest = captions.first, longest
        self.words = words
        types = list(words.types)
        self.ids = np.array([vocabulary.index.get(word, UNK) for word in types], np.int32)  # of each distinct word
        self.control_index = vocabulary.control_index

        self.mirrored: dict[int, np.ndarray] = {}  # the words' ids of each row that a mirrored picture changes
        self.never_mirrored: set[int] = set()
        sides = np.array([names_side(word) for word in types], bool)
        for row in words.rows_with(sides).tolist() if augment.flip else ():
            text = captions.texts[row]
            if (other := swap_sides(text)) == text:
                continue
            ids = np.array(vocabulary.encode(tokenizer.tokens(other)[:longest])[1:-1], np.int32)
            (own,) = self._encoded(np.array([row]))
            self.mirrored[row] = ids
            # A word whose counterpart the vocabulary lacks would be taught as <unk>.
            lost = (ids == UNK).sum() > (own == UNK).sum()
            if lost or augment.flip_captions == "leave":
                self.never_mirrored.add(int(np.searchsorted(self.first_caption, row, "right")) - 1)
        self.features: Sequence[np.ndarray | ShardFeatures] | None = None
        """Cached features (images, R, D) of each view."""

    def _encoded(self, rows: np.ndarray) -> list[np.ndarray]:
        """The ids of each row's words, those beyond the longest left out."""
        starts, counts = self.words.spans(rows)
        counts = np.minimum(counts, self.longest)
        ids = self.ids[self.words.stream[np.repeat(starts, counts) + ranges(counts)]]
        return np.split(ids, np.cumsum(counts)[:-1])

    def lengths(self) -> np.ndarray:
        """(M,) tokens of each caption, BOS and EOS among them."""
        return np.minimum(self.words.spans()[1], self.longest) + 2

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
        variations = [self._variation(item) for item in items]
        images, read = self._images(items, variations)
        items, variations = [items[i] for i in read], [variations[i] for i in read]
        index = [item.image for item in items]
        rows = [self.first_caption[item.image] + np.asarray(item.captions) for item in items]
        references = [self.captions[i] for i in index]
        every = iter(self._encoded(np.concatenate(rows)))
        captions = []
        for b, (item, variation) in enumerate(zip(items, variations, strict=True)):
            words = list(islice(every, len(rows[b])))
            if variation.flip:
                words = [self.mirrored.get(row, ids) for row, ids in zip(rows[b].tolist(), words, strict=True)]
                references[b] = [swap_sides(text) for text in references[b]]
            given = self._given(item, rows[b], [len(ids) for ids in words])
            # The longest first: what is left of a batch after some words is then a corner of it.
            both = zip(given, words, strict=True)
            captions.append(sorted(both, key=lambda each: -len(each[0]) - len(each[1])))
        longest = max(len(given) + len(words) for each in captions for given, words in each)
        shape = (len(captions), max(map(len, captions)), longest + 2)
        tokens, prefix = np.full(shape, PAD), np.ones(shape[:2], np.int64)
        lengths = np.zeros(shape[:2], np.int64)
        for b, each in enumerate(captions):
            for q, (controls, ids) in enumerate(each):
                first, end = 1 + len(controls), 1 + len(controls) + len(ids)
                tokens[b, q, 0], tokens[b, q, 1:first] = BOS, controls
                tokens[b, q, first:end], tokens[b, q, end] = ids, EOS
                prefix[b, q], lengths[b, q] = first, end + 1
        return Batch(
            images,
            torch.tensor(index),
            torch.from_numpy(tokens),
            torch.from_numpy(np.arange(shape[-1]) < lengths[..., None]),
            torch.from_numpy(prefix),
            references,
        )

    def _images(self, items: Sequence[Item], variations: Sequence[Variation]) -> tuple[Tensor | Regions, Sequence[int]]:
        """What the encoder takes of these images, and which of them: of shards, with `skip`, training goes on without
        those that cannot be read."""
        every = range(len(items))
        index = [item.image for item in items]
        if self.regions is not None:
            return padded([self.regions.read(self.images[i]) for i in index]), every
        if self.features is not None:
            return self._features(items), every
        read, found = [], []
        for place, (item, variation) in enumerate(zip(items, variations, strict=True)):
            try:
                found.append(self._picture(item.image, variation))
                read.append(place)
            except (ShardError, ImageError) as error:
                if self.shards is None or not self.skip or item.draw is None:
                    raise
                self.lost += 1
                log.warning("a training image left out (the %d. of this process): %s", self.lost, error)
                last = error
        if not found:
            raise ShardError(f"none of a batch's {len(items)} images could be read: {last}")
        return torch.stack(found), read

    def _features(self, items: Sequence[Item]) -> Tensor:
        assert self.features is not None
        if isinstance(self.features[0], ShardFeatures):
            return torch.from_numpy(self.features[0].take([item.image for item in items]))
        return torch.from_numpy(np.stack([self.features[self._view(item)][item.image] for item in items]))

    def _picture(self, image: int, variation: Variation) -> Tensor:
        if self.shards is not None:
            return self.shards.open(image, self.preprocess, variation)
        return self.preprocess.open(self.root / self.images[image], variation)

    def _given(self, item: Item, rows: np.ndarray, lengths: Sequence[int]) -> list[list[int]]:
        """The control tokens of an item's captions, of so many words each; a training item keeps what its draw says."""
        if self.control is None:
            return [[] for _ in rows]
        given = []
        for row, length in zip(rows.tolist(), lengths, strict=True):
            names = self.control.tokens(self.labels[row], length)
            given.append([self.control_index[name] for name in names if name in self.control_index])
        return given if item.draw is None else self.control.kept(given, item.draw)


class TrainingOrder(Sampler[list[Item]]):
    """Which captions come when, and each item's draw: a function of (seed, epoch, step, rank, world) alone, so that a
    resumed run sees what an uninterrupted one would have. Every caption once an epoch: an image's captions are
    shuffled, cut into groups of `captions_per_image`, and the groups shuffled. Of every `BUCKET` steps' groups, those
    of like length then come together, and the batches are shuffled. All ranks take equally many steps. Of
    shards, a few at a time are mixed.

    Args:
        lengths: (M,) of the captions, in tokens, those of an image together.
        first: (N + 1,) where those of each image begin, and the last's end.
        batch_size: images (groups) a batch and rank.
        captions_per_image: captions of an image that are learned from together.
        seed: of the whole order.
        rank: of this process.
        world: number of processes.
    """

    BUCKET = 20

    def __init__(
        self,
        lengths: np.ndarray,
        first: np.ndarray,
        batch_size: int,
        captions_per_image: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.lengths, self.first, self.batch_size, self.seed = lengths, first, batch_size, seed
        self.captions_per_image, self.rank, self.world = captions_per_image, rank, world
        self.blocks: np.ndarray | None = None  # (N,) of each image, its shard: those of few are read at a time,
        self.together = 1  # of so many
        self.epoch = 0
        self.start = 0  # the step that the next epoch begins with, when one is resumed in its middle
        groups = int((-(-np.diff(first) // captions_per_image)).sum())
        whole, rest = divmod(groups, batch_size * world)
        self.steps = whole + (rest >= world)

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Item]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        counts = np.diff(self.first)
        image = np.repeat(np.arange(len(counts)), counts)
        # Each image's captions shuffled, by numbers below 1 that a sum with its place keeps apart.
        shuffled = np.argsort(image + rng.random(len(image), np.float32).astype(np.float64), kind="stable")
        places = np.arange(len(image)) - self.first[image]
        starts = np.flatnonzero(places % self.captions_per_image == 0)  # of the groups
        ends = np.append(starts[1:], len(image))
        image = image[starts]
        own = self.lengths[shuffled]
        longest, total = np.maximum.reduceat(own, starts), np.add.reduceat(own, starts)
        draws = rng.integers(2**63, size=len(starts))
        # Ranks take equally many: what is left over is cut off here, at random, not from a window's longest captions.
        order = rng.permutation(len(starts))[: len(starts) // self.world * self.world]
        every = self.batch_size * self.world
        reading = np.zeros(len(starts), np.int64)  # when: with the groups of which shards
        if self.blocks is not None:
            of_shards = np.random.default_rng([self.seed, self.epoch, 1])  # the rest is as without shards
            reading = of_shards.permutation(self.blocks.max() + 1)[self.blocks[image]] // self.together
            order = order[reading[order].argsort(kind="stable")]
        # Nearly alike in the longest caption, which padding follows, and then in all of them.
        ranks = np.empty(len(starts), np.int64)
        ranks[np.lexsort((total, longest // 3))] = np.arange(len(starts))
        for part in np.split(order, np.flatnonzero(np.diff(reading[order])) + 1):
            for i in range(0, len(part), self.BUCKET * every):
                window = part[i : i + self.BUCKET * every]
                window[:] = window[ranks[window].argsort()]
        full = rng.permutation(len(order) // every)
        when = reading[order[full * every]] + reading[order[full * every + every - 1]]
        full = full[when.argsort(kind="stable")].tolist()
        start, self.start = self.start, 0
        for step in range(start, self.steps):
            batch = full[step] if step < len(full) else step
            chunk = order[batch * every : (batch + 1) * every]
            chunk = chunk[np.argsort(-longest[chunk], kind="stable")][self.rank :: self.world]
            yield [
                Item(i, (shuffled[begin:end] - self.first[i]).tolist(), draw)
                for i, begin, end, draw in zip(
                    *(each[chunk].tolist() for each in (image, starts, ends, draws)), strict=True
                )
            ]


class EvaluationOrder(Sampler[list[Item]]):
    """Every image once, in order, with all its captions; rank r takes images r, r + world, … A rank for which there is
    none gets the first image, which is not its own."""

    def __init__(self, first: np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.first, self.batch_size = first, batch_size
        every = range(len(first) - 1)
        self.images = every[rank::world] or every[:1]

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for start in range(0, len(self.images), self.batch_size):
            images = self.images[start : start + self.batch_size]
            yield [Item(image, range(int(self.first[image + 1] - self.first[image]))) for image in images]


def check_fields(data: Mapping[str, Any]) -> None:
    """Of `CaptionData`'s arguments, refuse what needs no file to be refused.

    Raises:
        ValueError: a number out of its range, no TSV, or TSVs that contradict `split`.
    """
    counts = ("min_count", "max_size", "batch_size", "captions_per_image", "max_tokens", "eval_batch_size")
    at_least(1, "data", **{name: data[name] for name in counts})
    at_least(0, "data", workers=data["workers"])
    at_least(1, "data", shuffle_shards=data["shuffle_shards"])
    if data["shard_cache_gb"] is not None and not data["shard_cache_gb"] > 0:
        raise ValueError(f"data.shard_cache_gb={data['shard_cache_gb']}: more than 0, or null")
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
        root: the folder that image paths and the TSVs are relative to, or of shards an address.
        train, val, test: TSV files, or shards (`found_shards`); any may be None. Only `train` and `split` given: one
            file, split by image.
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
        form: tsv, tables of picture files; or shards, webdataset's tars.
        on_bad_shard: error, or skip: images of shards that are missing or damaged are left out and counted.
        shuffle_shards: shards that a batch is drawn from: few are read at a time.
        shard_cache_gb: of shards that have an address, how much is kept at most; None: all.
        cache_dir: where tables in flat form, verified images and cached features are kept.
        regions: of the images, computed beforehand: these are read, and checked by `verify`, instead of the images.
        control: which control tokens captions are given.
        seed: of the order.
        leaks: warn, error or off: what `check_leaks` does where splits share pictures.
    """

    def __init__(
        self,
        root: str | Path,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        train: str | Sequence[str] | None = None,
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
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
        form: Form = "tsv",
        on_bad_shard: OnBadShard = "error",
        shuffle_shards: int = 16,
        shard_cache_gb: float | None = None,
        cache_dir: str | Path = "cache",
        regions: RegionFiles | None = None,
        control: Control | None = None,
        seed: int = 0,
        leaks: Leaks = "warn",
    ) -> None:
        check_fields(locals())
        super().__init__()
        self.location, self.root, self.cache_dir = str(root), Path(root), Path(cache_dir)
        self.form, self.on_bad_shard, self.shuffle_shards = form, on_bad_shard, shuffle_shards
        self.shard_cache_bytes = None if shard_cache_gb is None else int(shard_cache_gb * 1e9)
        self.shards: dict[str, Shards] = {}
        self.preprocess, self.tokenizer = preprocess, tokenizer
        self.batch_size, self.eval_batch_size, self.captions_per_image = batch_size, eval_batch_size, captions_per_image
        self.max_tokens, self.workers, self.seed, self.leaks = max_tokens, workers, seed, leaks
        self.verify, self.on_bad_row, self.regions, self.control = verify, on_bad_row, regions, control
        files = {"train": train, "val": val, "test": test}
        self.tables: dict[str, Captions] = {}
        if split is not None:
            parts = split_by_image(self._read("train", train or ""), list(split), split_seed)
            self.tables = {name: part for name, part in zip(SPLITS, parts, strict=False) if part.images}
            self.shards = {name: shards for shards in self.shards.values() for name in self.tables}
        else:
            self.tables = {name: self._read(name, file) for name, file in files.items() if file}
        if preprocess.augment is not None and self.packed("train"):
            raise ValueError(
                "transform.augment varies pictures, and data.train holds their features: choose one of both"
            )
        if control is not None and control.tags:
            check_tags(self.tables, {name: f"{self.root}/{files[name] or train}" for name in self.tables})
        if vocabulary is None or extend is not None:
            self.tables = by_default(self.tables, control)
            if "train" not in self.tables:
                raise ValueError("data.train is not set: the vocabulary is built from the training captions")
            words = self.words("train")
            controls = control.counts(self.tables["train"], words, max_tokens) if control is not None else {}
            if vocabulary is None:
                vocabulary = Vocabulary.build(words.counts(), min_count, max_size, controls)
            else:
                vocabulary = vocabulary.extended(words.counts(), min_count, max_size, bool(extend), controls)
        self.vocabulary = vocabulary
        self._splits: dict[str, CaptionedImages] = {}
        self._training: BatchLoader | None = None
        self._resume_at = 0

    def _read(self, name: str, file: str | Sequence[str]) -> Captions:
        if self.form == "shards":
            table, self.shards[name] = found_shards(
                self.location,
                file,
                self.cache_dir,
                on_bad_shard=self.on_bad_shard,
                verify=self.verify,
                most=self.shard_cache_bytes,
            )
            return table
        path = self.root / str(file)
        table = read_tsv(
            path,
            self.root,
            on_bad_row=self.on_bad_row,
            verify=self.verify,
            cache_dir=self.cache_dir,
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

    def check_leaks(self) -> None:
        """Before training, look for pictures that stand in several splits byte for byte (`exact_leaks`), unless
        `leaks` is off; list them beside the skipped rows. Shards, whose manifests know no picture's content, and
        regions without pictures are not looked at.

        Raises:
            ValueError: with `leaks` error, there are some.
        """
        if self.leaks == "off":
            return
        found = exact_leaks(
            {name: each.images for name, each in self.tables.items() if name not in self.shards}, self.root
        )
        listed = self.cache_dir / f"{self.root.resolve().name}.leaks.tsv"
        if is_first():
            write_leaks(listed, found)
        if found and self.leaks == "error":
            raise ValueError(f"data.leaks=error: {leaks_told(found, listed)}")
        if found and is_first():
            log.warning("data: %s", leaks_told(found, listed))

    def words(self, name: str) -> Words:
        """The words of a split's captions."""
        return words_of(self._table(name), self.tokenizer)

    def training_tokens(self) -> Iterator[list[str]]:
        """The words of each training caption."""
        return iter(self.words("train"))

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
                self.words(name),
                self.root,
                self.preprocess,
                self.tokenizer,
                self.vocabulary,
                self.max_tokens,
                self.preprocess.augment if name == "train" else None,
                self.regions,
                self.control,
                self.shards.get(name),
                self.on_bad_shard == "skip",
            )
        return self._splits[name]

    def packed(self, name: str) -> bool:
        """Whether a split's shards hold features instead of pictures."""
        return name in self.shards and self.shards[name].manifest.features is not None

    def place(self, name: str) -> str:
        """The folder that the images of a split are relative to; of shards their folder or address, or where no
        manifest lies beside them the first one's own."""
        if name not in self.shards:
            return str(self.root.resolve())
        place = self.shards[name].place or self.shards[name].path(0)
        return place if is_address(place) else str(Path(place).resolve())

    def picture(self, name: str, row: int) -> Path | bytes | None:
        """The picture of a row of a split to show, its file or its bytes; None where there need be none: of regions and
        features computed beforehand.

        Raises:
            ShardError: its shard is missing or damaged.
        """
        images = self._table(name).images
        if name in self.shards:
            number = row if images.chosen is None else int(images.chosen[row])
            return None if self.packed(name) else self.shards[name].read(number)
        file = self.root / images[row]
        return None if self.regions is not None and not file.is_file() else file

    def pictures(self, name: str) -> Pictures:
        """The pictures of a split by their images' names."""
        rows = {image: row for row, image in enumerate(self._table(name).images)}
        return Pictures(self.place(name), lambda image: self.picture(name, rows[image]))

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """What tells this data from other data, of each split: how many `images` and `captions`; `sha256`, of the
        images' names and what is said of each, in order; and `pictures`, of the content of up to 100, evenly spread, or
        of all that shards hold."""
        return {
            name: {
                "images": len(table),
                "captions": len(table.texts),
                "sha256": table.digest(),
                "pictures": self.shards[name].digest() if name in self.shards else self._pictures_digest(name, table),
            }
            for name, table in self.tables.items()
        }

    def _pictures_digest(self, name: str, table: Captions) -> str:
        found = hashlib.sha256()
        for place in np.unique(np.linspace(0, len(table) - 1, min(len(table), 100)).astype(int)).tolist():
            picture = self.picture(name, place)
            if isinstance(picture, Path):
                with suppress(OSError):  # a missing one is the loader's to name
                    found.update(picture.read_bytes())
        return found.hexdigest()

    def cache_features(
        self, encoder: Encoder, backbone_config: Mapping[str, Any], names: Sequence[str], views: int = 1, **options: Any
    ) -> None:
        """From now on read the frozen stages' output from the cache, building what it lacks: `cached_features`. Of the
        training images in so many views, of which each item's draw picks one; evaluation sees the first."""
        for name in names:
            split, shards = self.images(name), self.shards.get(name)
            if shards is not None and shards.manifest.features is not None:
                check_features(
                    shards, features_key(encoder, backbone_config, self.preprocess, options.get("precision"))
                )
                split.features = [ShardFeatures(shards, split.images.chosen)]
                continue
            split.features = [
                cached_features(
                    encoder,
                    backbone_config,
                    self.root,
                    split.images,
                    self.preprocess,
                    self.cache_dir / "features",
                    variations=[split.cached_variation(image, view) for image in range(len(split))],
                    shards=split.shards,
                    **options,
                )
                for view in range(views if name == "train" else 1)
            ]

    def setup(self, stage: str) -> None:
        """Lightning calls this as processes begin to train together. What one of them alone cannot read, and leaves
        out, would give it other steps than the others.

        Raises:
            ValueError: the processes have other images or captions, or other words.
        """
        rank, world = self._world()
        if world == 1:
            return
        mine = {}
        for name, table in self.tables.items():
            mine[name] = f"{len(table.images)} images, {len(table.texts)} captions ({table.digest()[:8]})"
        words = hashlib.sha256("\n".join(self.vocabulary.words).encode()).hexdigest()
        mine["the vocabulary"] = f"{len(self.vocabulary.words)} tokens ({words[:8]})"
        everyone: list[dict[str, str]] = [{}] * world
        torch.distributed.all_gather_object(everyone, mine)
        for other, found in enumerate(everyone):
            for name, has in found.items():
                if has != everyone[0].get(name):
                    raise ValueError(
                        f"the processes have other data: of {name}, process {other} has {has}, and process 0 "
                        f"{everyone[0].get(name)}: give each node the same files (what is bad on one alone is left out "
                        "there)"
                    )

    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: CaptionedImages, order: Sampler[Any], stay: bool = False) -> "BatchLoader":
        features = split.features and split.features[0]
        fetched = isinstance(features, ShardFeatures) and is_address(features.shards.path(0))
        # Features that lie here are read sooner than another process could hand them over.
        workers = 0 if features is not None and not fetched else self.workers
        return BatchLoader(
            split,
            batch_size=None,  # the order gives whole batches
            sampler=order,
            collate_fn=_as_it_is,
            num_workers=workers,
            # Of evaluation they end with it: begun in the midst of training they hold on to all of its memory.
            persistent_workers=stay and workers > 0,
            worker_init_fn=undisturbed,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> "BatchLoader":
        split = self.images("train")
        together = self.captions_per_image or int(np.diff(split.first_caption).max())
        order = TrainingOrder(
            split.lengths(), split.first_caption, self.batch_size, together, self.seed, *self._world()
        )
        if split.shards is not None:
            order.blocks, order.together = split.shards.blocks(), self.shuffle_shards
            split.shards.shards.check_room(self.shuffle_shards)
        order.start, self._resume_at = self._resume_at, 0
        self._training = self._loader(split, order, stay=True)
        return self._training

    # Lightning keeps these in checkpoints and restores them before it asks for the loader: a run that was stopped in
    # the middle of an epoch goes on there.
    def state_dict(self) -> dict[str, int]:
        if self._training is None:
            return {"done": 0}
        batches = min(len(self._training), self.trainer.num_training_batches if self.trainer else len(self._training))
        return {"done": self._training.done if self._training.done < batches else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resume_at = state_dict["done"]

    def evaluation_dataloader(self, name: str, rank: int = 0, world: int = 1) -> "BatchLoader":
        """Every image of a split once, with all its captions; or this rank's share of them."""
        split = self.images(name)
        order = EvaluationOrder(split.first_caption, self.eval_batch_size, rank, world)
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
