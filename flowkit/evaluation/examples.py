"""What a translated image is near to, as rows to look at: its neighbours, and what captions find.

neighbours   for images of the gallery, the true images nearest to their true vector and to their predicted one, each
             without itself: equal rows mean that the translation keeps the neighbourhood
queries      for some captions, the images that they find among true and among predicted embeddings
Vectors are image embeddings, or token means where the layout has no class token; captions need embeddings. Nearest is
by cosine, first row first. Shapes: G gallery images, Q captions, K = 5.
"""

from __future__ import annotations

import numpy as np

from flowkit.evaluation.collected import OneSide
from flowkit.evaluation.retrieval import Captions, unit
from flowkit.evaluation.tokens import Floats, Integers

DEPTH = 5
QUERIES = 8


def neighbours(predicted: OneSide, true: OneSide, gallery_G: Integers) -> dict[str, Integers]:
    """Rows [G, K] of the nearest true images."""
    return {
        "neighbours_true": nearest(true.pooled[gallery_G], true.pooled, leave_out_Q=gallery_G),
        "neighbours_predicted": nearest(predicted.pooled[gallery_G], true.pooled, leave_out_Q=gallery_G),
    }


def queries(
    predicted: OneSide, true: OneSide, captions: Captions | None, generator: np.random.Generator
) -> dict[str, Integers]:
    """Rows of the images whose first captions are asked [Q], and of what they find [Q, K]; none without captions."""
    if captions is None or not len(captions) or predicted.embeddings_NP is None or true.embeddings_NP is None:
        nothing = np.empty((0, DEPTH), np.int64)
        return {"query_index": nothing[:, 0], "query_true": nothing, "query_predicted": nothing}
    first_Q = _some_first_captions(captions, generator)
    asked_QP = np.asarray(captions.embeddings_MP)[first_Q]
    return {
        "query_index": captions.image_M[first_Q].astype(np.int64),
        "query_true": nearest(asked_QP, true.embeddings_NP),
        "query_predicted": nearest(asked_QP, predicted.embeddings_NP),
    }


def nearest(query_QP: Floats, gallery_NP: Floats, *, leave_out_Q: Integers | None = None) -> Integers:
    """Rows of the gallery most similar to each query, at most five [Q, K]; the first of equals comes first."""
    similarity = np.nan_to_num(unit(query_QP) @ unit(gallery_NP).T, nan=-2.0)
    count = similarity.shape[1]
    if leave_out_Q is not None:
        similarity[np.arange(len(similarity)), leave_out_Q] = -np.inf
        count -= 1
    return np.argsort(-similarity, axis=1, kind="stable")[:, : min(DEPTH, count)].astype(np.int64)


def _some_first_captions(captions: Captions, generator: np.random.Generator) -> Integers:
    """Rows of the first captions of some images, no two with equal words, in the order of their images."""
    _, first_of_image = np.unique(captions.image_M, return_index=True)
    words = np.asarray(captions.texts, dtype=object)[first_of_image]
    _, first_of_words = np.unique(words, return_index=True)
    distinct = np.sort(first_of_image[first_of_words])
    return np.sort(generator.permutation(distinct)[:QUERIES])
