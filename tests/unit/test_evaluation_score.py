"""The rows of one set of predictions, and the arrays that the report draws."""

import json
import math

import numpy as np
import pytest

from flowkit.evaluation import tokens as tokens_module
from flowkit.evaluation.collected import collect, collect_true
from flowkit.evaluation.details import gallery_rows, per_image
from flowkit.evaluation.retrieval import Captions
from flowkit.evaluation.score import METRICS, Classes, Texts, score
from flowkit.evaluation.thresholds import other_image
from flowkit.evaluation.zero_shot import class_table

IMAGES, TOKENS, CHANNELS = 120, 5, 6


@pytest.fixture
def case():
    """Tokens, embeddings taken from the first token, captions and classes that fit the true tokens."""
    generator = np.random.default_rng(0)
    target = generator.normal(size=(IMAGES, TOKENS, CHANNELS)).astype(np.float32) + 1.0
    predicted = target + 0.4 * generator.normal(size=target.shape).astype(np.float32)
    texts = [f"caption {n // 2}" for n in range(IMAGES)]
    prompts = generator.normal(size=(3, CHANNELS))
    classes = np.argmax(unit(target[:, 0]) @ unit(prompts).T, axis=1)
    return {
        "predicted": predicted,
        "target": target,
        "mean": np.ones((TOKENS, CHANNELS)),
        "captions": Captions(target[:, 0], texts, np.arange(IMAGES)),
        "classes": Classes(prompts, class_table([[int(c)] for c in classes], 3)),
    }


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def first_token(tokens):
    """The embedding of a pooled layout."""
    return tokens[:, 0]


def scored(case, predicted, *, embed=first_token, texts=None, **settings):
    """Rows by metric, and notes by metric."""
    true = collect_true(case["target"], case["mean"], embed)
    texts = Texts(case["captions"], case["classes"]) if texts is None else texts
    found = score(predicted, true, **({"texts": texts, "is_deterministic": True, "draws": 200} | settings))
    assert tuple(row["metric"] for row in found.rows) == METRICS
    notes = {metric: note["note"] for note in found.notes for metric in note["metrics"]}
    return {row["metric"]: row for row in found.rows}, notes


def full_score(case, predicted, **settings):
    return scored(case, predicted, **settings)[0]


def details(case, predicted, embed=None, **settings):
    true = collect_true(case["target"], case["mean"], embed)
    return per_image(predicted, collect(predicted, true), true, **settings)


def test_true_tokens_reach_the_ceiling_of_every_metric(case):
    rows = full_score(case, case["target"])
    zero = {"fd_tok", "fd_img", "mmd", "seed_spread"}
    other = {"fd_tok_disjoint", "fd_img_disjoint", "auc", "r2_of_mean", "dispersion"}
    for metric, row in rows.items():
        if metric not in other and not metric.startswith("over_"):
            assert row["value"] == pytest.approx(0.0 if metric in zero else 1.0, abs=1e-6), metric
    assert rows["over_90"]["value"] == 1.0
    assert 0 < rows["fd_img_disjoint"]["value"] < 0.5  # the noise floor is not zero


def test_noise_costs_in_every_metric(case):
    rows = full_score(case, case["predicted"])
    for metric in (
        "tok_cos",
        "tok_ccos",
        "img_cos",
        "img_ccos",
        "r2",
        "emb_cos",
        "self_r1",
        "t2i_r1",
        "i2t_r1",
    ):
        assert 0 < rows[metric]["value"] < 1, metric
    assert rows["fd_tok"]["value"] > 0
    assert rows["var_ratio"]["value"] > 1
    assert rows["zero_shot_top1"]["value"] < 1


def test_intervals_hold_their_value_and_shrink_with_more_images(case):
    rows = full_score(case, case["predicted"])
    for metric, row in rows.items():
        if row["value"] is not None:
            assert row["low"] <= row["value"] <= row["high"], metric
    repeated = {name: np.concatenate([case[name]] * 4) for name in ("predicted", "target")}
    more = full_score(case | repeated, repeated["predicted"], embed=None)
    width = {
        name: found["r2"]["high"] - found["r2"]["low"] for name, found in (("few", rows), ("many", more))
    }
    assert width["many"] == pytest.approx(width["few"] / 2, rel=0.25)


def test_same_input_same_rows(case):
    assert full_score(case, case["predicted"]) == full_score(case, case["predicted"])


def test_without_a_class_token_the_embedding_metrics_are_not_measured_and_the_notes_say_so(case):
    rows, notes = scored(case, case["predicted"], embed=None)
    embedding = {m for m in METRICS if m.startswith(("emb", "self", "t2i", "i2t", "zero"))}
    assert {metric for metric, row in rows.items() if row["value"] is None} == {*embedding, "r2_of_mean"}
    assert all("no class token" in notes[metric] for metric in embedding)
    assert "token means" in notes["mmd"]
    assert rows["mmd"]["value"] > 0


def test_captions_and_classes_may_be_missing(case):
    rows, notes = scored(case, case["predicted"], texts=Texts())
    assert rows["self_r1"]["value"] is not None
    assert rows["t2i_r1"]["value"] is rows["zero_shot_top1"]["value"] is None
    assert notes["t2i_r1"] == "no image has a caption"
    assert notes["zero_shot_top1"] == "the data set has no classes"
    no_captions = Captions(np.zeros((0, CHANNELS)), [], np.zeros(0, np.int64))
    rows, notes = scored(case, case["predicted"], texts=Texts(no_captions))
    assert rows["i2t_r1"]["value"] is None
    assert notes["i2t_r1"] == "no image has a caption"


def test_images_without_captions_are_left_out_and_counted(case):
    """True embeddings find all captions that there are: images without any are no failures."""
    half = np.arange(0, IMAGES, 2)
    captions = Captions(case["target"][half, 0], [f"caption {n}" for n in half], half)
    rows, notes = scored(case, case["target"], texts=Texts(captions))
    assert rows["t2i_r1"]["value"] == rows["i2t_r1"]["value"] == 1.0
    assert notes["i2t_r1"] == "60 of 120 images have no caption and are left out"


def test_too_few_images_for_their_channels_have_no_frechet_distance_but_a_discrepancy(case):
    """Two fifths of 120 images can span 47 channels, two fifths of their 600 tokens 239."""
    wide = {name: np.repeat(case[name], 8, axis=2) for name in ("predicted", "target")}
    wide["mean"] = np.ones((TOKENS, 8 * CHANNELS))
    rows, notes = scored(case | wide, wide["predicted"], texts=Texts())
    assert rows["fd_img"]["value"] is rows["fd_img_disjoint"]["value"] is None
    assert notes["fd_img"].startswith(
        "120 images are too few: two fifths of their 120 vectors must span 48 channels"
    )
    assert "mmd" in notes["fd_img"]
    assert rows["mmd"]["value"] is not None
    assert rows["fd_tok"]["value"] is not None


@pytest.mark.parametrize("images", [2, 3, 12, 30])
def test_a_handful_of_images_is_scored_as_far_as_it_goes(case, images):
    few = case | {"target": case["target"][:images]}
    rows, notes = scored(few, case["predicted"][:images], texts=Texts())
    assert rows["r2"]["value"] is not None
    assert all(metric in notes for metric, row in rows.items() if row["value"] is None)
    assert "classifier" in notes["auc"]


def test_every_missing_figure_has_a_reason(case):
    """Also where the target does not vary, so that nothing can be explained."""
    still = case | {"target": np.ones_like(case["target"])}
    for embed in (first_token, None):
        rows, notes = scored(still, case["predicted"], embed=embed, texts=Texts())
        missing = {metric for metric, row in rows.items() if row["value"] is None}
        assert {"r2", "fd_tok", "var_ratio"} <= missing <= notes.keys()


def test_not_finite_is_counted_and_named_and_never_nan_in_json(case):
    broken = case["predicted"].copy()
    broken[3] = np.nan
    broken[7, 2, 1] = np.inf
    rows, notes = scored(case, broken, keys=[f"image-{n}" for n in range(IMAGES)])
    json.dumps(list(rows.values()), allow_nan=False)
    assert all(row["value"] is row["low"] is row["high"] is None for row in rows.values())
    assert notes["r2"].startswith("2 of 120 predictions are not finite, first image-3, image-7")


def test_one_sample_per_image_has_no_spread_but_a_note(case):
    rows, notes = scored(case, case["predicted"], is_deterministic=False)
    assert rows["dispersion"]["value"] is None
    assert "noise_seeds" in notes["dispersion"]


def test_noise_seeds_widen_the_intervals_of_distances(case):
    generator = np.random.default_rng(5)
    other = case["target"] + 0.8 * generator.normal(size=case["target"].shape)
    alone = full_score(case, case["predicted"], is_deterministic=False)
    both = full_score(case, case["predicted"], is_deterministic=False, noise=[other])
    few = full_score(case, case["predicted"], is_deterministic=False, noise=[other[:30]])
    assert both["fd_tok"]["value"] == alone["fd_tok"]["value"]
    assert both["fd_tok"]["high"] > alone["fd_tok"]["high"]
    assert few["fd_tok"] == alone["fd_tok"]  # thirty images say nothing of the distance of all
    assert both["seed_spread"]["value"] > 0
    assert few["dispersion"]["value"] == pytest.approx(both["dispersion"]["value"], rel=0.3)


def test_thresholds_stand_beside_trivial_answers(case):
    """The true tokens pass every level; what the constant answer passes is a share of images by itself."""
    rows = full_score(case, case["target"])
    means = case["target"].mean(axis=1)
    cosines = means.sum(axis=1) / np.linalg.norm(means, axis=1) / math.sqrt(CHANNELS)
    for level in (70, 80, 90):
        assert rows[f"over_{level}"]["value"] == 1.0
        assert rows[f"over_{level}_constant"]["value"] == pytest.approx((cosines > level / 100).mean())
        assert rows[f"over_{level}_shuffled"]["value"] <= rows[f"over_{level}_constant"]["value"] + 0.2


def test_details_agree_with_the_rows(case):
    rows = full_score(case, case["predicted"])
    arrays = details(case, case["predicted"], first_token, captions=case["captions"], gallery_each=4)
    assert arrays["cos_image"].mean() == pytest.approx(rows["img_cos"]["value"], abs=1e-6)
    assert arrays["cos_token_mean"].mean() == pytest.approx(rows["tok_cos"]["value"], abs=1e-6)
    assert arrays["error_image"].mean() == pytest.approx(1 - rows["r2"]["value"], abs=1e-6)
    assert np.mean(arrays["self_rank"] <= 5) == pytest.approx(rows["self_r5"]["value"])
    assert np.mean(arrays["t2i_rank"] <= 1) == pytest.approx(rows["t2i_r1"]["value"])
    position = 1 - ((case["predicted"] - case["target"]) ** 2).sum((0, 2)) / ((case["target"] - 1) ** 2).sum(
        (0, 2)
    )
    assert arrays["r2_position"] == pytest.approx(position, abs=1e-5)
    gallery = arrays["gallery_index"]
    assert arrays["error_map"].shape == (12, TOKENS)
    assert arrays["error_map"].mean(axis=1) == pytest.approx(arrays["error_image"][gallery], rel=1e-4)


def test_details_without_embeddings_have_no_ranks(case):
    arrays = details(case, case["predicted"])
    assert np.isnan(arrays["self_rank"]).all()
    assert np.isnan(arrays["t2i_rank"]).all()


def test_comparisons_beside_the_prediction(case):
    """The true tokens against another image's and against the mean: what a cosine is worth."""
    arrays = details(case, case["target"])
    assert arrays["cos_image"] == pytest.approx(np.ones(IMAGES), abs=1e-6)
    assert arrays["cos_shuffled"].max() < 1
    means = case["target"].mean(axis=1)
    constant = means.sum(axis=1) / np.linalg.norm(means, axis=1) / math.sqrt(CHANNELS)
    assert arrays["cos_constant"] == pytest.approx(constant, abs=1e-5)


@pytest.mark.parametrize("images", [2, 3, 50])
def test_partner_is_always_another_image(images):
    for seed in range(20):
        partner = other_image(images, np.random.default_rng(seed))
        assert sorted(partner) == list(range(images))
        assert (partner != np.arange(images)).all()


def test_gallery_is_best_worst_and_random_without_repeats():
    error = np.random.default_rng(0).permutation(40).astype(float)
    rows = gallery_rows(error, 5, np.random.default_rng(1))
    assert sorted(error[rows[:5]]) == [0, 1, 2, 3, 4]
    assert sorted(error[rows[5:10]]) == [35, 36, 37, 38, 39]
    assert len(set(rows.tolist())) == 15
    assert sorted(gallery_rows(error[:7], 5, np.random.default_rng(1))) == list(range(7))


def test_random_part_of_the_gallery_is_shared_by_runs():
    """Two runs with unlike errors show mostly the same random images, so that pages can be compared."""
    first, second = (
        set(gallery_rows(np.random.default_rng(seed).random(1000), 8, np.random.default_rng(0))[16:].tolist())
        for seed in (1, 2)
    )
    assert len(first & second) >= 6


class OnDisk:
    """Tokens that count how many rows are asked for at once."""

    def __init__(self, tokens):
        self.tokens, self.most = tokens, 0

    @property
    def shape(self):
        return self.tokens.shape

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, rows):
        part = self.tokens[rows]
        self.most = max(self.most, part.size)
        return part


def test_tokens_are_read_in_chunks_and_give_the_same_figures(case, monkeypatch):
    monkeypatch.setattr(tokens_module, "MOST_ROWS", 16)
    lazy = {name: OnDisk(case[name]) for name in ("predicted", "target")}
    found = full_score(case | lazy, lazy["predicted"])
    monkeypatch.undo()
    whole = full_score(case, case["predicted"])
    measured = [metric for metric, row in whole.items() if row["value"] is not None]
    assert len(measured) == len(METRICS) - 1  # the mean of seeds
    for metric in measured:
        assert found[metric]["value"] == pytest.approx(whole[metric]["value"], rel=1e-6), metric
    assert lazy["predicted"].most <= 32 * TOKENS * CHANNELS  # the two-sample test reads 32 images at once


def test_everything_is_measured_where_nothing_is_missing():
    generator = np.random.default_rng(0)
    target, noise = generator.normal(size=(2, 1024, 17, 96)).astype(np.float32)
    embeddings = target[:, 0]
    texts = Texts(
        Captions(embeddings, [str(n) for n in range(1024)], np.arange(1024)),
        Classes(embeddings[:32], class_table([[n % 32] for n in range(1024)], 32)),
    )
    true = collect_true(target, np.zeros((17, 96)), first_token)
    found = score(target + noise, true, texts=texts, noise=[target - noise])
    assert [row["metric"] for row in found.rows if row["value"] is None] == []
