"""Retrieval and zero-shot against hand examples and scikit-learn."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import top_k_accuracy_score

from flowkit.evaluation.bootstrap import bootstrap, draw_counts
from flowkit.evaluation.retrieval import (
    Captions,
    caption_to_image_ranks,
    image_to_caption_ranks,
    ranks,
    recall_ratios,
    self_ranks,
)
from flowkit.evaluation.zero_shot import class_table, zero_shot_ratio

EYE = np.eye(4)


def recall(name, rank, images):
    ratios = recall_ratios(name, rank, np.arange(images), images)
    estimates = bootstrap(ratios, draw_counts(images, draws=20, seed=0))
    return {metric: estimate.value for metric, estimate in estimates.items()}


def test_ranks_by_hand():
    gallery = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    query = np.array([[1.0, 0.0]])
    for right, rank in ((0, 1), (1, 2), (2, 3)):
        hits = np.zeros((1, 3))
        hits[0, right] = 1
        assert ranks(query, gallery, sparse.csr_array(hits)).tolist() == [rank]


def test_length_of_embeddings_does_not_matter():
    generator = np.random.default_rng(0)
    predicted, target = generator.normal(size=(2, 20, 5))
    lengths = generator.uniform(0.1, 10, size=(20, 1))
    assert np.array_equal(self_ranks(predicted, target), self_ranks(lengths * predicted, target / lengths))


def test_self_recall_against_scikit_learn():
    generator = np.random.default_rng(1)
    target = generator.normal(size=(300, 16))
    predicted = target + 1.3 * generator.normal(size=target.shape)
    found = recall("self", self_ranks(predicted, target), 300)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (predicted, target)]
    for depth in (1, 5, 10):
        expected = top_k_accuracy_score(np.arange(300), unit[0] @ unit[1].T, k=depth)
        assert found[f"self_r{depth}"] == pytest.approx(expected)
    assert (
        0.1 < found["self_r1"] < found["self_r5"] < found["self_r10"] < 1
    )  # the example can tell them apart


def test_collapsed_predictions_find_nothing():
    """One embedding for all images ties everywhere; so does the zero vector. Ties must not count as found."""
    target = np.random.default_rng(2).normal(size=(30, 8)).astype(np.float32)
    captions = Captions(target, [str(n) for n in range(30)], np.arange(30))
    for collapsed in (np.repeat(target[:1], 30, axis=0), np.zeros_like(target)):
        assert (caption_to_image_ranks(collapsed, captions) == 30).all()
    assert (self_ranks(np.zeros_like(target), target) == 30).all()


def test_not_finite_embeddings_come_last():
    predicted = EYE.copy()
    predicted[2, 1] = np.nan
    assert self_ranks(predicted, EYE).tolist() == [1, 1, 4, 1]
    captions = Captions(EYE, list("abcd"), np.arange(4))
    assert caption_to_image_ranks(predicted, captions).tolist() == [1, 1, 4, 1]


def test_equal_captions_count_as_found():
    """Images 0 and 1 share a caption; each caption finds the other's image first, which is right."""
    swapped = EYE[[1, 0, 2, 3]]
    shared = Captions(EYE, ["red", "red", "blue", "green"], np.arange(4))
    apart = Captions(EYE, ["red", "pink", "blue", "green"], np.arange(4))
    assert caption_to_image_ranks(swapped, shared).tolist() == [1, 1, 1, 1]
    assert image_to_caption_ranks(swapped, shared).tolist() == [1, 1, 1, 1]
    assert caption_to_image_ranks(swapped, apart)[:2].min() > 1
    assert image_to_caption_ranks(swapped, apart)[:2].min() > 1


def test_several_captions_per_image():
    """Image 0 has captions 0 and 2, image 1 has caption 1: an image is found by any of its captions."""
    captions = Captions(np.array([[1, 0.1], [0, 1], [-1, 0]]), list("abc"), np.array([0, 1, 0]))
    predicted = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert caption_to_image_ranks(predicted, captions).tolist() == [1, 1, 2]
    assert image_to_caption_ranks(predicted, captions).tolist() == [1, 1]
    ratio = recall_ratios("t2i", np.array([1, 1, 2]), captions.image_M, 2)["t2i_r1"]
    assert ratio.numerator_N.tolist() == [1, 1]
    assert ratio.denominator_N.tolist() == [2, 1]


def test_no_captions_at_all_is_an_empty_set():
    captions = Captions(np.zeros((0, 4)), [], np.zeros(0, np.int64))
    assert captions.texts_of_images(3).shape == (3, 0)
    assert len(captions) == 0


def test_captions_must_agree_in_number():
    with pytest.raises(ValueError, match="differ in number"):
        Captions(EYE, ["a"], np.arange(4))


def test_zero_shot_by_hand():
    predicted = np.array([[2.0, 0.1], [0.1, 3.0], [1.0, 0.2], [5.0, 0.0]])
    labels = class_table([[0], [0], [0, 1], []], 2)  # right, wrong, right by one of two, without a class
    ratio = zero_shot_ratio(predicted, np.eye(2), labels)
    assert ratio.numerator_N.tolist() == [1, 0, 1, 0]
    assert ratio.denominator_N.tolist() == [1, 1, 1, 0]


def test_zero_shot_counts_a_broken_embedding_as_wrong():
    predicted = np.array([[np.nan, 0.0], [1.0, 0.0]])
    ratio = zero_shot_ratio(predicted, np.eye(2), class_table([[0], [0]], 2))
    assert ratio.numerator_N.tolist() == [0, 1]


def test_zero_shot_checks_the_label_table():
    with pytest.raises(ValueError, match="labels have shape"):
        zero_shot_ratio(EYE, np.eye(4), class_table([[0]], 4))


def test_zero_shot_ties_count_against_the_prediction():
    """A collapsed embedding is as near to every class: it must not be right wherever the first class is shown."""
    labels = class_table([[0], [0, 1], [1]], 2)
    for collapsed in (np.zeros((3, 2)), np.ones((3, 2))):
        assert zero_shot_ratio(collapsed, np.eye(2), labels).numerator_N.tolist() == [0, 1, 0]
