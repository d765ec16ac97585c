"""The rows of one set of predictions, and the arrays that the report draws."""

import json
import math
import time

import numpy as np
import pytest

from flowkit.evaluation.details import gallery_rows, other_image, per_image
from flowkit.evaluation.retrieval import Captions
from flowkit.evaluation.score import METRICS, Classes, score
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
        "disjoint": generator.normal(size=(90, TOKENS, CHANNELS)) + 1.0,
    }


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def full_score(case, predicted, **changes):
    arguments = {
        "predicted_pooled_NP": predicted[:, 0],
        "target_pooled_NP": case["target"][:, 0],
        "captions": case["captions"],
        "classes": case["classes"],
        "disjoint_target_NTD": case["disjoint"],
        "draws": 200,
    }
    rows = score(predicted, case["target"], case["mean"], **(arguments | changes))
    assert tuple(row["metric"] for row in rows) == METRICS
    return {row["metric"]: row for row in rows}


def test_true_tokens_reach_the_ceiling_of_every_metric(case):
    rows = full_score(case, case["target"])
    zero = {"fd_tok", "fd_img"}
    for metric, row in rows.items():
        if not metric.endswith("disjoint"):
            assert row["value"] == pytest.approx(0.0 if metric in zero else 1.0, abs=1e-6), metric
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
        assert row["low"] <= row["value"] <= row["high"], metric
    twice = [np.concatenate([case[name]] * 4) for name in ("predicted", "target")]
    more = {row["metric"]: row for row in score(*twice, case["mean"])}
    width = {
        name: found["r2"]["high"] - found["r2"]["low"] for name, found in (("few", rows), ("many", more))
    }
    assert width["many"] == pytest.approx(width["few"] / 2, rel=0.25)


def test_same_input_same_rows(case):
    assert full_score(case, case["predicted"]) == full_score(case, case["predicted"])


def test_what_was_not_measured_is_none_and_the_rows_stay(case):
    rows = full_score(
        case, case["predicted"], predicted_pooled_NP=None, target_pooled_NP=None, disjoint_target_NTD=None
    )
    missing = {metric for metric, row in rows.items() if row["value"] is None}
    assert missing == {
        m for m in METRICS if m.startswith(("emb", "self", "t2i", "i2t", "zero")) or "disjoint" in m
    }


def test_captions_and_classes_may_be_missing(case):
    rows = full_score(case, case["predicted"], captions=None, classes=None)
    assert rows["self_r1"]["value"] is not None
    assert rows["t2i_r1"]["value"] is rows["zero_shot_top1"]["value"] is None
    no_captions = Captions(np.zeros((0, CHANNELS)), [], np.zeros(0, np.int64))
    assert full_score(case, case["predicted"], captions=no_captions)["i2t_r1"]["value"] is None


def test_not_finite_becomes_none_and_never_nan_in_json(case):
    broken = case["predicted"].copy()
    broken[3] = np.nan
    rows = full_score(case, broken)
    json.dumps(list(rows.values()), allow_nan=False)
    assert rows["r2"] == {"metric": "r2", "value": None, "low": None, "high": None}
    assert rows["fd_tok"]["value"] is None
    assert rows["self_r1"]["value"] < 1  # the broken image counts as not found


def test_details_agree_with_the_rows(case):
    rows = full_score(case, case["predicted"])
    arrays = per_image(
        case["predicted"],
        case["target"],
        case["mean"],
        predicted_pooled_NP=case["predicted"][:, 0],
        target_pooled_NP=case["target"][:, 0],
        captions=case["captions"],
        gallery_each=4,
    )
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
    arrays = per_image(case["predicted"], case["target"], case["mean"])
    assert np.isnan(arrays["self_rank"]).all()
    assert np.isnan(arrays["t2i_rank"]).all()


def test_comparisons_beside_the_prediction(case):
    """The true tokens against another image's and against the mean: what a cosine is worth."""
    arrays = per_image(case["target"], case["target"], case["mean"])
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


def test_demo_size_is_scored_in_seconds():
    """1,024 images of 17 x 96 tokens, all metrics, 1,000 draws: at most 4 CPU-seconds on one thread."""
    generator = np.random.default_rng(0)
    target, noise, disjoint = generator.normal(size=(3, 1024, 17, 96)).astype(np.float32)
    embeddings = generator.normal(size=(1024, 64))
    started = time.process_time()
    rows = score(
        target + noise,
        target,
        np.zeros((17, 96)),
        predicted_pooled_NP=embeddings,
        target_pooled_NP=embeddings,
        captions=Captions(embeddings, [str(n) for n in range(1024)], np.arange(1024)),
        classes=Classes(embeddings[:32], class_table([[n % 32] for n in range(1024)], 32)),
        disjoint_target_NTD=disjoint,
    )
    assert time.process_time() - started < 4
    assert all(row["value"] is not None for row in rows)
