"""Does a predicted embedding find its own image or caption among all others, and is it found?

Similarity is the cosine. rank = 1 + number of wrong candidates at least as similar as the best right one: a
tie counts against the prediction, so an embedding that collapsed to one point finds nothing. recall@k =
share of queries with rank <= k.
    self   predicted image -> true images; right: its own
    t2i    caption -> predicted images;    right: every image that has an equal caption (demo captions repeat)
    i2t    predicted image -> captions;    right: its captions and those equal to one of them
Images are the unit of the bootstrap, the gallery stays whole: in t2i an image brings all its captions
along. Shapes: Q queries, G gallery entries, M captions, N images, P embedding width, U distinct captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from flowkit.evaluation.bootstrap import Array, Ratio
from flowkit.evaluation.tokens import Floats, Integers, chunks

DEPTHS = (1, 5, 10)
# Two cosines closer than this are equal: embeddings are float32, and products differ in their last bits.
TIE = 1e-6


@dataclass(frozen=True)
class Captions:
    """Captions of the judged images: embedding by the target's text tower, text, and row of its image."""

    embeddings_MP: Floats
    texts: Sequence[str]
    image_M: Integers

    def __post_init__(self) -> None:
        lengths = {len(self.embeddings_MP), len(self.texts), len(self.image_M)}
        if len(lengths) != 1:
            raise ValueError(
                f"captions: embeddings, texts and image indices differ in number: {sorted(lengths)}"
            )

    def __len__(self) -> int:
        return len(self.texts)

    def identities(self) -> sparse.csr_array:
        """Which text each caption is [M, U], one 1 per row."""
        distinct, text_M = np.unique(np.asarray(self.texts, dtype=object), return_inverse=True)
        shape = (len(self), len(distinct))
        return sparse.csr_array((np.ones(len(self)), (np.arange(len(self)), text_M)), shape=shape)

    def texts_of_images(self, images: int) -> sparse.csr_array:
        """Which texts each image has [N, U] (counts, more than 0 = has it)."""
        ones, shape = np.ones(len(self)), (images, len(self))
        owner = sparse.csr_array((ones, (self.image_M, np.arange(len(self)))), shape=shape)
        return owner @ self.identities()


def unit(embeddings: Floats) -> Array:
    """Rows scaled to length 1; a zero row stays zero, a row that is not finite becomes NaN."""
    values = np.asarray(embeddings, np.float64)
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.nan)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths == 0, 1.0, lengths)


def ranks(query_QP: Floats, gallery_GP: Floats, right_QG: sparse.csr_array) -> Integers:
    """Rank of the best right entry for each query, from 1; worse than the whole gallery if there is none.

    A query or gallery entry that is not finite is as far away as can be: similarity -1 to everything.
    """
    queries, gallery = unit(query_QP), unit(gallery_GP)
    found: list[Integers] = []
    for rows in chunks(len(queries)):
        similarity = np.nan_to_num(queries[rows] @ gallery.T, nan=-1.0)
        right = right_QG[rows].toarray() > 0
        best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
        found.append(1 + ((similarity >= best - TIE) & ~right).sum(axis=1))
    return np.concatenate(found).astype(np.int64)


def self_ranks(predicted_NP: Floats, target_NP: Floats) -> Integers:
    """Rank of each image's true embedding for its predicted one [N]."""
    return ranks(predicted_NP, target_NP, sparse.csr_array(sparse.eye_array(len(target_NP))))


def caption_to_image_ranks(predicted_NP: Floats, captions: Captions) -> Integers:
    """Rank of the right image for each caption [M]."""
    right = captions.identities() @ captions.texts_of_images(len(predicted_NP)).T
    return ranks(captions.embeddings_MP, predicted_NP, sparse.csr_array(right))


def image_to_caption_ranks(predicted_NP: Floats, captions: Captions) -> Integers:
    """Rank of the right caption for each image [N]."""
    right = captions.texts_of_images(len(predicted_NP)) @ captions.identities().T
    return ranks(predicted_NP, captions.embeddings_MP, sparse.csr_array(right))


def recall_ratios(name: str, rank_Q: Integers, image_Q: Integers, images: int) -> dict[str, Ratio]:
    """recall@1, 5 and 10 as `<name>_r<k>`; `image_Q` says which image each query counts for."""
    queries_N = np.bincount(image_Q, minlength=images).astype(np.float64)
    ratios = {}
    for depth in DEPTHS:
        found_N = np.bincount(image_Q[rank_Q <= depth], minlength=images)
        ratios[f"{name}_r{depth}"] = Ratio(found_N.astype(np.float64), queries_N)
    return ratios
