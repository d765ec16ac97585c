"""Trains and measures the demo towers: CLIP's contrastive loss on captioned pictures.

Half of every batch are plain pictures, half are hard negatives (groups equal in everything but one shape),
because shape is what a tower learns last. AdamW with warm-up and cosine decay. Pictures come from outside;
this module draws nothing. Same pictures, seed and thread count: same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from open_clip.loss import ClipLoss
from torch.nn import functional as F

from flowkit.encoders.contract import FrozenEncoder
from flowkit.encoders.demo_towers import PREPROCESSING, build_demo_tower, tokenize

WARMUP_STEPS = 50
LOGIT_SCALE_MAX = math.log(100)


class Captioned(Protocol):
    """Pictures uint8 [N, H, W, 3] with one caption each."""

    @property
    def pixels_NHWC(self) -> np.ndarray: ...

    @property
    def captions(self) -> list[str]: ...


@dataclass(frozen=True)
class TowerRecipe:
    """How a tower is trained; `images` are drawn for it, half of them as hard negatives."""

    images: int
    short_caption_every: int
    steps: int
    batch: int
    learning_rate: float
    seed: int


RECIPES = {
    "demo-eva": TowerRecipe(
        32_768, short_caption_every=6, steps=900, batch=128, learning_rate=1.5e-3, seed=0
    ),
    "demo-vit": TowerRecipe(32_768, short_caption_every=6, steps=900, batch=128, learning_rate=1e-3, seed=0),
}


def train_tower(
    name: str,
    pictures: Captioned,
    hard_negatives: Captioned,
    *,
    group_size: int,
    recipe: TowerRecipe,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, torch.Tensor]:
    """Return the state dict of demo tower `name` after `recipe.steps` contrastive steps.

    `hard_negatives` holds its groups of `group_size` one after the other; `report(step, loss)` comes every
    50 steps. Raises `ValueError` if half a batch is not a whole number of groups or the pictures are too few.
    """
    batch, seed, steps = recipe.batch, recipe.seed, recipe.steps
    if batch % (2 * group_size):
        raise ValueError(f"batch {batch} is not a multiple of {2 * group_size} (two halves of whole groups)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_demo_tower(name).train()
    optimizer = torch.optim.AdamW(
        _parameter_groups(model), lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-6
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_share(step, steps))
    contrastive = ClipLoss()
    plain = _batches(len(pictures.captions), batch // 2, seed=seed, stream=0)
    grouped = _batches(
        len(hard_negatives.captions) // group_size, batch // 2 // group_size, seed=seed, stream=1
    )
    words_plain, words_hard = tokenize(pictures.captions), tokenize(hard_negatives.captions)
    for step in range(1, steps + 1):
        one = next(plain)
        two = (next(grouped)[:, None] * group_size + np.arange(group_size)).ravel()
        pixels_NHWC = np.concatenate([pictures.pixels_NHWC[one], hard_negatives.pixels_NHWC[two]])
        images = F.normalize(model.encode_image(normalise_pixels(pixels_NHWC)), dim=-1)
        texts = F.normalize(model.encode_text(torch.cat([words_plain[one], words_hard[two]])), dim=-1)
        loss = contrastive(images, texts, model.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, LOGIT_SCALE_MAX)
        if step % 50 == 0:
            report(step, loss.item())
    return model.state_dict()


def measure_tower(
    encoder: FrozenEncoder,
    pictures: Captioned,
    *,
    classes: list[tuple[str, ...]],
    class_names: list[str],
    prompts: list[str],
) -> dict[str, float]:
    """Return retrieval and zero-shot accuracies of an encoder on pictures of its own size.

    `t2i_r1` (`t2i_r5`): share of captions whose best (five best) images include one with an equal caption.
    `colour_x_shape`: share of one-object images whose best prompt is their class; `colour_x_shape_any`:
    share of all images whose best prompt is the class of one of their objects; `colour`, `shape`: each half
    of the class name alone, one-object images.
    """
    pooled = torch.cat(
        [
            encoder.encode(normalise_pixels(chunk))[1].cpu()
            for chunk in np.array_split(pictures.pixels_NHWC, 10)
        ]
    )
    images = F.normalize(pooled, dim=-1)
    texts = F.normalize(encoder.encode_text(pictures.captions), dim=-1)
    best = (texts @ images.T).topk(5, dim=1).indices.tolist()
    hits = [
        [pictures.captions[image] == caption for image in row]
        for row, caption in zip(best, pictures.captions, strict=True)
    ]
    chosen = (images @ F.normalize(encoder.encode_text(prompts), dim=-1).T).argmax(dim=1).tolist()
    guesses = [class_names[number] for number in chosen]
    single = [(guess, true[0]) for guess, true in zip(guesses, classes, strict=True) if len(true) == 1]
    return {
        "t2i_r1": _share(row[0] for row in hits),
        "t2i_r5": _share(any(row) for row in hits),
        "colour_x_shape": _share(guess == true for guess, true in single),
        "colour_x_shape_any": _share(guess in true for guess, true in zip(guesses, classes, strict=True)),
        "colour": _share(guess.split()[0] == true.split()[0] for guess, true in single),
        "shape": _share(guess.split()[1] == true.split()[1] for guess, true in single),
    }


def normalise_pixels(pixels_NHWC: np.ndarray) -> torch.Tensor:
    """Return uint8 pictures of the towers' size as [N, 3, H, W], as `preprocess` does for one image."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (PREPROCESSING.mean, PREPROCESSING.std))
    pixels_NCHW = torch.from_numpy(np.ascontiguousarray(pixels_NHWC.transpose(0, 3, 1, 2)))
    return (pixels_NCHW.float() / 255 - mean) / std


def _batches(count: int, size: int, *, seed: int, stream: int) -> Iterator[np.ndarray]:
    """Yield index batches without end, each epoch a new permutation, the remainder dropped."""
    if count < size:
        raise ValueError(f"{count} pictures or groups are fewer than the {size} of one batch")
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
    while True:
        order = generator.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def _parameter_groups(model: torch.nn.Module) -> list[dict[str, object]]:
    matrices = [value for value in model.parameters() if value.ndim >= 2]
    others = [value for value in model.parameters() if value.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]


def _learning_rate_share(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _share(hits: Iterator[bool]) -> float:
    counted = list(hits)
    return sum(counted) / len(counted)
