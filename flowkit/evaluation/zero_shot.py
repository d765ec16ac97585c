"""Zero-shot classification of predicted embeddings by the nearest class prompt of the target's text tower.

top-1 = share of images whose most similar prompt (cosine) names one of the classes the image shows. An
image may show several (two objects); an image that shows none of them is left out of the figure. Shapes: N
images, C classes, P width.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowkit.evaluation.bootstrap import Ratio
from flowkit.evaluation.retrieval import TIE, unit
from flowkit.evaluation.tokens import Floats


def class_table(classes_of_image: Sequence[Sequence[int]], class_count: int) -> NDArray[np.bool_]:
    """Boolean table [N, C] from a list of class numbers per image."""
    table = np.zeros((len(classes_of_image), class_count), dtype=bool)
    for row, classes in zip(table, classes_of_image, strict=True):
        row[list(classes)] = True
    return table


def zero_shot_ratio(predicted_NP: Floats, class_embeddings_CP: Floats, labels_NC: NDArray[np.bool_]) -> Ratio:
    """Top-1 accuracy over the images that have a class; an embedding that is not finite counts as wrong."""
    if labels_NC.shape != (len(predicted_NP), len(class_embeddings_CP)):
        raise ValueError(
            f"labels have shape {labels_NC.shape}, expected {(len(predicted_NP), len(class_embeddings_CP))}"
        )
    similarity = unit(predicted_NP) @ unit(class_embeddings_CP).T
    right = np.where(labels_NC, similarity, -np.inf).max(axis=1)
    wrong = np.where(labels_NC, -np.inf, similarity).max(axis=1)
    # a tie counts against the prediction, or a collapsed embedding would be right wherever the first class is
    is_right = (right > wrong + TIE) & np.isfinite(similarity).all(axis=1)
    has_class: NDArray[np.bool_] = np.any(labels_NC, axis=1)
    return Ratio(is_right.astype(np.float64), has_class.astype(np.float64))
