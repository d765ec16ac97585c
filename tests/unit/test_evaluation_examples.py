"""Images to look at: neighbours and what captions find, by hand."""

import numpy as np

from flowkit.evaluation.collected import collect, collect_true
from flowkit.evaluation.examples import QUERIES, nearest, neighbours, queries
from flowkit.evaluation.retrieval import Captions

ANGLES = np.radians([0, 10, 25, 45, 70, 100, 135])


def directions(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def sides(predicted_angles, *, embed=lambda part: part[:, 0]):
    true = collect_true(directions(ANGLES)[:, None], np.zeros((1, 2)), embed)
    return collect(directions(predicted_angles)[:, None], true).side, true.side


def test_nearest_is_by_cosine_and_leaves_out_what_it_is_told_to():
    gallery = directions(ANGLES) * np.arange(1, 8)[:, None]
    assert nearest(gallery[[0, 6]], gallery).tolist() == [[0, 1, 2, 3, 4], [6, 5, 4, 3, 2]]
    without = nearest(gallery[[0, 6]], gallery, leave_out_Q=np.array([0, 6]))
    assert without.tolist() == [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]
    assert nearest(gallery[:1], gallery[:3], leave_out_Q=np.array([0])).tolist() == [[1, 2]]


def test_neighbours_differ_where_the_prediction_lies_elsewhere():
    predicted = ANGLES.copy()
    predicted[0] = np.radians(130)
    for embed in (lambda part: part[:, 0], None):
        found = neighbours(*sides(predicted, embed=embed), np.array([0, 3]))
        assert found["neighbours_true"].tolist() == [[1, 2, 3, 4, 5], [2, 4, 1, 0, 5]]
        assert found["neighbours_predicted"].tolist() == [[6, 5, 4, 3, 2], [2, 4, 1, 0, 5]]


def captions(texts, images):
    return Captions(directions(ANGLES[images]), texts, np.array(images))


def test_a_caption_finds_images_among_true_and_among_predicted_embeddings():
    asked = captions(["a", "b", "b again", "a"], [1, 4, 4, 5])
    found = queries(*sides(ANGLES[::-1]), asked, np.random.default_rng(0))
    assert found["query_index"].tolist() == [1, 4]  # the words of image 5 are those of image 1
    assert found["query_true"][:, 0].tolist() == [1, 4]
    assert found["query_predicted"][:, 0].tolist() == [5, 2]


def test_no_more_captions_than_a_page_holds_and_none_without_embeddings():
    many = captions([f"caption {n}" for n in range(14)], list(range(7)) * 2)
    found = queries(*sides(ANGLES), many, np.random.default_rng(0))
    assert len(found["query_index"]) == min(QUERIES, 7)
    assert found["query_true"].shape == (7, 5)
    for missing in (
        queries(*sides(ANGLES), None, np.random.default_rng(0)),
        queries(*sides(ANGLES, embed=None), many, np.random.default_rng(0)),
    ):
        assert missing["query_index"].shape == (0,)
        assert missing["query_true"].shape == missing["query_predicted"].shape == (0, 5)
