"""Faults that once went unseen, planted one by one: which metrics notice, and that a headline metric always does.

The translator is exact: source c, target x_1 = c + s e, so that E[x_1 | x_t, c] and with it the velocity have a closed
form. What is wrong with each fault is therefore the fault alone.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from flowkit.evaluation.collected import collect_true
from flowkit.evaluation.retrieval import Captions
from flowkit.evaluation.score import Classes, Texts, score
from flowkit.evaluation.summary import RunScore, summary_rows
from flowkit.evaluation.zero_shot import class_table
from flowkit.flow import path
from flowkit.flow.earlier import reversed_time
from flowkit.flow.solvers import integrate, time_grid

IMAGES, TOKENS, CHANNELS = 400, 6, 8
SIGMA = 0.25
"""Spread of the target that the source does not determine; the source's own is 1."""
MASSIVE = 12.0
"""Mean of one channel, as real tokens have a few: a clamp at 10 cuts it."""
HEADLINES = ("r2", "fd_tok", "fd_img", "self_r1", "t2i_r1")
SEMANTIC_WEIGHT = 0.5


def draw(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(IMAGES, TOKENS, CHANNELS, generator=generator, dtype=torch.float64)


@cache
def world() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Source, target and mean. Channels differ in spread and tokens in mean, as those of an encoder do."""
    mean = torch.linspace(-1, 1, TOKENS, dtype=torch.float64)[:, None].repeat(1, CHANNELS)
    mean[:, 0] += MASSIVE
    source = mean + draw(0) * torch.linspace(0.6, 1.6, CHANNELS, dtype=torch.float64)
    return source, source + SIGMA * draw(1), mean.numpy()


def clean(x: torch.Tensor, t: float, source: torch.Tensor) -> torch.Tensor:
    """E[x_1 | x_t, c] for x_t = (1 - t) x_0 + t x_1 with x_0 ~ N(0, 1) and x_1 ~ N(c, sigma^2)."""
    gain = t * SIGMA**2 / ((1 - t) ** 2 + t**2 * SIGMA**2)
    return source + gain * (x - t * source)


def sample(seed: int, *, clock=lambda t: t, wrong_sign: bool = False) -> np.ndarray:
    """Exact samples, or those of a sampler that is told another time, or of a velocity learned with the wrong sign."""
    source, _, _ = world()

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        told = clock(t)
        v = path.velocity_from_clean(clean(x, told, source), x, torch.tensor([told]), 1e-3)
        # argmin over v of |v - u|^2 + w |x_t - (1 - t) v - x_1|^2, where x_t - x_1 = -(1 - t) u
        weight = SEMANTIC_WEIGHT * (1 - told) ** 2
        return v * (1 - weight) / (1 + weight) if wrong_sign else v

    return integrate(velocity, draw(100 + seed), time_grid(24), "heun").numpy()


def shuffled(tokens: np.ndarray) -> np.ndarray:
    return np.roll(tokens, 1, axis=0)


def cls_swapped(tokens: np.ndarray) -> np.ndarray:
    return tokens[:, [1, 0, *range(2, TOKENS)]]


def noisy(tokens: np.ndarray) -> np.ndarray:
    return tokens + 0.5 * draw(7).numpy()


FAULTS = {
    "reversed clock": lambda seed: sample(seed, clock=reversed_time),
    "sign flipped": lambda seed: sample(seed, wrong_sign=True),
    "shuffled pairs": lambda seed: shuffled(sample(seed)),
    "constant prediction": lambda seed: np.broadcast_to(world()[2], (IMAGES, TOKENS, CHANNELS)),
    "tokens permuted": lambda seed: sample(seed)[:, [0, *range(TOKENS - 1, 0, -1)]],
    "CLS swapped": lambda seed: cls_swapped(sample(seed)),
    "noise added": lambda seed: noisy(sample(seed)),
    "clamped at 10": lambda seed: np.clip(sample(seed), -10, 10),
    "nothing learned": lambda seed: draw(100 + seed).numpy(),
    "one noise for all seeds": lambda seed: sample(0),
}

CONTROL = {"other noise": lambda seed: sample(10 + seed)}


@cache
def figures(fault: str) -> dict[str, dict[str, float]]:
    """The summary rows of a fault, beside a ridge of R2 .5, by metric."""
    make = (FAULTS | CONTROL).get(fault, sample)
    _, target, mean = world()
    tokens = target.numpy()
    embeddings = tokens[:, 0]
    captions = embeddings + 0.4 * np.random.default_rng(0).normal(size=embeddings.shape)
    prompts = np.random.default_rng(1).normal(size=(5, CHANNELS)) * np.linspace(0.6, 1.6, CHANNELS) + mean[0]
    classes = np.argmax(unit(embeddings) @ unit(prompts).T, axis=1)
    texts = Texts(
        Captions(captions, [f"image {n}" for n in range(IMAGES)], np.arange(IMAGES)),
        Classes(prompts, class_table([[int(one)] for one in classes], len(prompts))),
    )
    true = collect_true(tokens, mean, lambda part: part[:, 0])
    found = score(make(0), true, texts=texts, noise=[make(1), make(2)], draws=200)
    ridge = [{"metric": metric, "value": 0.5, "low": 0.5, "high": 0.5} for metric in ("r2", "tok_ccos")]
    rows = summary_rows(
        [RunScore("flow", "heun-24", "toy", found.rows), RunScore("ridge", "-", "toy", ridge)]
    )
    return {row["metric"]: row for row in rows if row["run"] == "flow"}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def moved(fault: str) -> set[str]:
    """Metrics whose interval lies outside that of the faultless sampler."""
    good, bad = figures("none"), figures(fault)
    return {
        metric
        for metric in good
        if good[metric]["value"] is not None
        and (bad[metric]["high"] < good[metric]["low"] or bad[metric]["low"] > good[metric]["high"])
    }


def test_without_a_fault_samples_are_what_theory_says() -> None:
    """R2 of the mean is 1 - sigma^2 / variance, that of a sample twice as far from 1; its spread is calibrated."""
    good = figures("none")
    variance = np.mean(np.linspace(0.6, 1.6, CHANNELS) ** 2) + SIGMA**2
    assert good["r2"]["value"] == pytest.approx(1 - 2 * SIGMA**2 / variance, abs=0.01)
    assert good["dispersion"]["low"] < 1.05
    assert good["dispersion"]["high"] > 0.95
    assert good["fd_tok"]["value"] < 0.005
    assert good["auc"]["low"] < 0.5 < good["auc"]["high"] + 0.02


def test_other_noise_moves_nothing() -> None:
    """Or intervals would be too narrow for what follows to mean anything."""
    assert moved("other noise") == set()


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "one noise for all seeds"])
def test_a_headline_metric_catches_every_fault(fault: str) -> None:
    assert moved(fault) & set(HEADLINES)


SEEN = {
    "reversed clock": {"r2", "fd_tok", "var_ratio", "auc"},
    "sign flipped": {"r2", "fd_tok", "fd_img", "var_ratio", "norm_ratio", "tok_cos"},
    "shuffled pairs": {
        "r2",
        "skill_r2",
        "tok_ccos",
        "skill_tok_ccos",
        "img_ccos",
        "self_r1",
        "knn_agreement",
        "cka",
    },
    "constant prediction": {"var_ratio", "fd_tok", "fd_img", "mmd", "zero_shot_top1", "auc", "seed_spread"},
    "tokens permuted": {"r2", "tok_cos", "tok_ccos", "skill_r2"},
    "CLS swapped": {"emb_cos", "self_r1", "t2i_r1", "i2t_r1", "mmd"},
    "noise added": {"r2", "fd_tok", "norm_ratio", "var_ratio", "auc"},
    "clamped at 10": {"r2", "fd_tok", "norm_ratio"},
    "nothing learned": {"r2", "img_cos", "over_70", "over_80", "over_90", "auc"},
    "one noise for all seeds": {"seed_spread", "dispersion", "r2_of_mean"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_which_metrics_move(fault: str) -> None:
    assert SEEN[fault] <= moved(fault)


def test_every_metric_is_moved_by_some_fault() -> None:
    """Thresholds of the constant answer know nothing of the prediction: they are what the others stand beside."""
    everything = set().union(*(moved(fault) for fault in FAULTS))
    measured = {metric for metric, row in figures("none").items() if row["value"] is not None}
    beside = {metric for metric in measured if metric.endswith(("_constant", "_shuffled"))}
    assert measured - beside - everything == set()


def test_the_earlier_headline_misses_what_it_hides() -> None:
    """The cosine of token means misses permuted tokens, and constant and shuffled answers pass every threshold."""
    assert not moved("tokens permuted") & {"img_cos", "img_ccos"}
    for fault in ("constant prediction", "shuffled pairs"):
        assert figures(fault)["img_cos"]["value"] > 0.9
        assert "over_90" not in moved(fault)
