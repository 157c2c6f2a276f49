"""What an attack wants a captioner to say. Losses fall as a picture comes nearer to that."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from src.attacks.victim import AttackError, Read, Victim
from src.metrics.mistakes import FUNCTION_WORDS
from src.ranges import at_least


class Aim(NamedTuple):
    """What is wanted of one picture."""

    clean: list[str]
    """The words that are said of it as it is."""
    captions: list[list[int]]
    """Ids that a goal reads, each ending in the end token: references, or the sentence wanted."""
    wanted: Sequence[str] = ()
    """The words wanted: a sentence's, or one."""


class Judged(NamedTuple):
    loss: Tensor
    """(B,), with its gradient."""
    met: list[bool] | None
    """Of each picture, whether the goal is reached on these very pixels, by greedy search; where that is asked for."""


class Goal:
    """What is wanted of pictures, and how near they are to it."""

    targeted: bool = True

    def aims(self, victim: Victim, clean: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[Aim]:
        """What is wanted of each picture.

        Args:
            victim: who is to say it.
            clean: the words that it says of the pictures as they are.
            references: what people say of them.

        Raises:
            AttackError: nothing can be wanted of them.
        """
        raise NotImplementedError

    def judge(self, victim: Victim, images: Tensor, aims: Sequence[Aim], decide: bool = True) -> Judged:
        """How near pixels (B, 3, H, W) are to it, and where it is to `decide`, which have met it."""
        raise NotImplementedError

    def met(self, aim: Aim, words: Sequence[str]) -> bool:
        """Whether a caption is what was wanted."""
        raise NotImplementedError


class Untargeted(Goal):
    """That the words of the references become unlikely: the loss is their mean log-probability in nats, over all of a
    picture's references. Met where the caption is another one than that of the clean picture."""

    targeted = False

    def aims(self, victim: Victim, clean: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[Aim]:
        tokens = victim.captioner.tokenizer.tokens
        most = max(map(len, references))
        aims = []
        for words, group in zip(clean, references, strict=True):
            ids = [victim.ids(tokens(text)) for text in group]
            aims.append(Aim(list(words), ids + [[]] * (most - len(ids))))  # all have as many, some of no words
        return aims

    def judge(self, victim: Victim, images: Tensor, aims: Sequence[Aim], decide: bool = True) -> Judged:
        seen = victim.seen(images)
        read = victim.read(seen, [aim.captions for aim in aims])
        nats = F.cross_entropy(read.logits.permute(0, 3, 1, 2), read.words, reduction="none") * read.real
        met = None
        if decide:
            met = [self.met(aim, words) for aim, words in zip(aims, victim.said(seen), strict=True)]
        return Judged(-nats.sum((1, 2)) / read.real.sum((1, 2)), met)

    def met(self, aim: Aim, words: Sequence[str]) -> bool:
        return list(words) != aim.clean


def margins(read: Read, victim: Victim, wanted: Tensor) -> Tensor:
    """(B, Q, T): by how much the logit of a wanted word (B, Q, T) is above that of any other that may be said there."""
    logits = read.logits.index_fill(-1, torch.tensor(victim.never, device=read.logits.device), -torch.inf)
    own = read.logits.gather(-1, wanted.unsqueeze(-1))
    others = logits.scatter(-1, wanted.unsqueeze(-1), -torch.inf)
    return (own - others.amax(-1, keepdim=True)).squeeze(-1)


class Sentence(Goal):
    """That exactly a sentence is said: the targeted caption of Show-and-Fool (Chen et al., 2018,
    https://arxiv.org/abs/1712.02051, its logits formulation, equation 7): the loss sums, over the sentence's words and
    its end, by how much a word's logit lacks being the largest by `margin`.

    Args:
        sentence: what is to be said; None: of each picture what is said of another one, which is drawn, as in that
            paper.
        margin: in logits.
        seed: of the draws.
    """

    def __init__(self, sentence: str | None = None, margin: float = 1.0, seed: int = 0) -> None:
        at_least(0, "goal", margin=margin, seed=seed)
        self.sentence, self.margin, self.seed = sentence, margin, seed

    def aims(self, victim: Victim, clean: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[Aim]:
        if self.sentence is None:
            wanted = [list(clean[other]) for other in drawn_others(clean, self.seed)]
        else:
            words = victim.captioner.tokenizer.tokens(self.sentence)
            _known(victim, words, "goal.sentence")
            if len(words) > victim.greedy.max_length:
                raise AttackError(
                    f"goal.sentence: {len(words)} words, and its captions have {victim.greedy.max_length}"
                )
            wanted = [words] * len(clean)
        most = victim.greedy.max_length  # where a caption is cut, and need not end
        return [Aim(list(own), [victim.ids(words)[:most]], words) for own, words in zip(clean, wanted, strict=True)]

    def judge(self, victim: Victim, images: Tensor, aims: Sequence[Aim], decide: bool = True) -> Judged:
        read = victim.read(victim.seen(images), [aim.captions for aim in aims])
        above = margins(read, victim, read.words).masked_fill(~read.real, torch.inf)
        loss = (self.margin - above).clamp(min=0).sum((1, 2))
        return Judged(loss, (above > 0).all(2).all(1).tolist())

    def met(self, aim: Aim, words: Sequence[str]) -> bool:
        return list(words) == list(aim.wanted)


class Keyword(Goal):
    """That a word is said, anywhere: the targeted keyword of Show-and-Fool (equation 9), with one word: the loss is by
    how much its logit lacks being the largest by `margin` in the place of the caption, as greedy search says it now,
    where that is least.

    Args:
        word: what is to be said; None: of each picture a word that says something, of what is said of another one,
            which is drawn, and that neither its own caption nor its references say.
        margin: in logits.
        seed: of the draws.
    """

    def __init__(self, word: str | None = None, margin: float = 1.0, seed: int = 0) -> None:
        at_least(0, "goal", margin=margin, seed=seed)
        self.word, self.margin, self.seed = word, margin, seed

    def aims(self, victim: Victim, clean: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[Aim]:
        if self.word is not None:
            words = victim.captioner.tokenizer.tokens(self.word)
            if len(words) != 1:
                raise AttackError(f"goal.word={self.word}: one word is wanted; goal=sentence takes several")
            _known(victim, words, "goal.word")
            return [Aim(list(own), [], words) for own in clean]
        generator = torch.Generator().manual_seed(self.seed)
        said = list(dict.fromkeys(word for words in clean for word in words if word not in FUNCTION_WORDS))
        aims = []
        for own, group in zip(clean, references, strict=True):
            known = {word for text in group for word in victim.captioner.tokenizer.tokens(text)} | set(own)
            others = [word for word in said if word not in known and word in victim.vocabulary.index]
            if not others:
                raise AttackError("the captions of these pictures have no words to exchange: name one with goal.word")
            place = int(torch.randint(len(others), (1,), generator=generator))
            aims.append(Aim(list(own), [], [others[place]]))
        return aims

    def judge(self, victim: Victim, images: Tensor, aims: Sequence[Aim], decide: bool = True) -> Judged:
        seen = victim.seen(images)
        said = victim.said(seen)
        most = victim.greedy.max_length  # where a caption is cut, and no word follows
        read = victim.read(seen, [[victim.ids(words)[:most]] for words in said])
        ids = torch.tensor([victim.vocabulary.index[aim.wanted[0]] for aim in aims], device=images.device)
        above = margins(read, victim, ids.view(-1, 1, 1).expand_as(read.words))
        nearest = above.masked_fill(~read.real, -torch.inf).amax((1, 2))
        met = [self.met(aim, words) for aim, words in zip(aims, said, strict=True)]
        return Judged((self.margin - nearest).clamp(min=0), met)

    def met(self, aim: Aim, words: Sequence[str]) -> bool:
        return aim.wanted[0] in words


def drawn_others(captions: Sequence[Sequence[str]], seed: int) -> list[int]:
    """Of each caption the place of one of the others that reads otherwise, drawn.

    Raises:
        AttackError: all read the same.
    """
    generator = torch.Generator().manual_seed(seed)
    if len({tuple(words) for words in captions}) < 2:
        raise AttackError("all captions of these pictures are the same: name a sentence with goal.sentence")
    found = []
    for own in captions:
        place = int(torch.randint(len(captions), (1,), generator=generator))
        while list(captions[place]) == list(own):
            place = int(torch.randint(len(captions), (1,), generator=generator))
        found.append(place)
    return found


def _known(victim: Victim, words: Sequence[str], field: str) -> None:
    index = victim.vocabulary.index
    if unknown := [word for word in words if word not in index]:
        raise AttackError(f"{field}: the captioner does not know {unknown[0]!r} and so cannot say it")
    if never := [word for word in words if index[word] in victim.never]:
        raise AttackError(f"{field}: {never[0]!r} is a word that it never says (generation.never)")
