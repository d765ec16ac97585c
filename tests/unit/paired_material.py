"""Paired features in memory and small configurations for the tests of training and sampling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from flowkit.flow.objective import ObjectiveConfig
from flowkit.model.config import DiTConfig
from flowkit.training.run import TrainingConfig

TOKENS, SOURCE_WIDTH, TARGET_WIDTH = 5, 12, 8

MODEL = DiTConfig(
    architecture="blip3o",
    source_tokens=TOKENS,
    source_width=SOURCE_WIDTH,
    target_tokens=TOKENS,
    target_width=TARGET_WIDTH,
    grid=(2, 2),
    has_cls=True,
    width=32,
    depth=1,
    heads=2,
    kv_heads=1,
    ffn_width=48,
    adapter_layers=0,
    cross_attention=False,
    aligned_condition=True,
    head="linear",
)
FLOW = ObjectiveConfig(
    kind="flow",
    prediction="clean",
    clean_weight=1.0,
    velocity_weight=0.0,
    semantic_weight=0.0,
    cosine_weight=0.0,
    consistency_weight=0.0,
    time="uniform",
    time_beta=(0.5, 0.5),
    share_at_zero=0.5,
    time_gate=True,
    start_noise="target_covariance",
    condition_dropout=0.1,
    clock="ascending",
)
TRAINING = TrainingConfig(
    steps=12,
    batch_size=8,
    optimizer="muon",
    muon_learning_rate=0.04,
    muon_momentum=0.95,
    learning_rate=4e-3,
    warmup_steps=3,
    final_learning_rate_share=0.02,
    weight_decay=0.0,
    clip_norm=1.0,
    ema_decay=0.9,
    precision="fp32",
    seed=3,
    evaluate_every=5,
    checkpoint_every=4,
    validation_samples=16,
)


class Pairs:
    """Pairs whose targets are a fixed nonlinear map of their sources, far from unit scale."""

    def __init__(self, images: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.Generator().manual_seed(1234)
        self.source = 5 * torch.randn(images, TOKENS, SOURCE_WIDTH, generator=generator) + 1
        to_hidden = torch.randn(SOURCE_WIDTH, 24, generator=mixing) / 10
        to_target = torch.randn(24, TARGET_WIDTH, generator=mixing)
        self.target = 7 * torch.tanh(self.source @ to_hidden) @ to_target - 3

    @property
    def views(self) -> int:
        return 1

    @property
    def source_shape(self) -> tuple[int, int]:
        return TOKENS, SOURCE_WIDTH

    @property
    def target_shape(self) -> tuple[int, int]:
        return TOKENS, TARGET_WIDTH

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(ids)
        return self.source[rows], self.target[rows]

    def keys(self, ids: np.ndarray) -> list[str]:
        return [f"image-{index}" for index in ids]

    def batches(
        self,
        *,
        seed: int,
        batch_size: int,
        start_step: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: str = "random",
        device: object = "cpu",
    ) -> Iterator[tuple[int, np.ndarray, Tensor, Tensor]]:
        per_epoch = len(self) // batch_size
        step = start_step
        while True:
            epoch, place = divmod(step, per_epoch)
            order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(self))
            ids = order[place * batch_size : (place + 1) * batch_size]
            ids = np.split(ids, world_size)[rank]
            yield step, ids, *self.batch(ids)
            step += 1


class LinearPairs(Pairs):
    """Pairs whose targets are a fixed linear map of their sources, token by token."""

    def __init__(self, images: int, *, seed: int = 0) -> None:
        super().__init__(images, seed=seed)
        mixing = torch.Generator().manual_seed(4321)
        self.target = self.source @ torch.randn(SOURCE_WIDTH, TARGET_WIDTH, generator=mixing) + 2
