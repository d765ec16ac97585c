"""Extraction on a GPU: EVA-CLIP-8B and CLIP ViT-L/14 with random weights, in bf16, by wall time.

The share is of the rate that large bf16 matrix products reach on the same card in the same run; the work of an image is
counted from the towers' sizes, two operations for a multiplication with addition. The pair's rate is that of one
after the other, as both stores need it: extraction from the tar to the finished stores, fast decoding, all cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from extraction_bench import Bench, random_open_clip
from rows import Row, row

from flowkit.encoders.contract import FrozenEncoder
from flowkit.encoders.eva_clip import EvaClipEncoder, EvaConfig, build_eva
from flowkit.encoders.eva_names import MODELS
from flowkit.shards.reader import list_samples

EVA, CLIP = "EVA-CLIP-8B", "ViT-L-14-quickgelu"
CLIP_SIZES = EvaConfig(
    image_pixels=224, patch_pixels=14, width=1024, layers=24, heads=16, mlp_ratio=4, pooled_width=768
)
BATCH, MATRIX, PRODUCTS = 64, 8192, 20
SHARE_DEMANDED = 0.5


def gpu_rows(bench: Bench, repeats: int, device: str = "cuda") -> list[Row]:
    """Images per second of both encoders and of the pair, and its share of the card's matrix rate."""
    images = len(list_samples(bench.tar))
    encoders = {
        EVA: (lambda: random_eva(MODELS[EVA].config, device), operations(MODELS[EVA].config)),
        CLIP: (lambda: random_open_clip(CLIP, precision="bf16", device=device), operations(CLIP_SIZES)),
    }
    peaks = [matrix_rate(device) for _ in range(repeats)]
    seconds = {
        name: extraction_seconds(bench, make(), images, repeats, device)
        for name, (make, _) in encoders.items()
    }
    work = sum(each for _, each in encoders.values())
    both = [sum(turn) / images for turn in zip(*seconds.values(), strict=True)]
    shares = [work / each / peak for each, peak in zip(both, peaks, strict=True)]
    card = {"device": torch.cuda.get_device_name() if device == "cuda" else device}
    return [
        *[
            row(f"extraction, {name} bf16, images per second", [images / each for each in found], None) | card
            for name, found in seconds.items()
        ],
        row(f"extraction, {EVA} + {CLIP}, images per second", [1 / each for each in both], None) | card,
        row("measured bf16 matrix rate, TFLOP/s", [peak / 1e12 for peak in peaks], None) | card,
        row(f"extraction, {EVA} + {CLIP} / measured matrix rate", shares, SHARE_DEMANDED) | card,
    ]


def extraction_seconds(
    bench: Bench, encoder: FrozenEncoder, images: int, repeats: int, device: str
) -> list[float]:
    """Wall seconds of one tar each time, after one that does not count."""
    threads = len(os.sched_getaffinity(0))

    def work() -> None:
        found = bench.extract(encoder, images, BATCH, decode="fast", decode_threads=threads)
        if found != images:
            raise RuntimeError(f"{found} of {images} images were stored")

    return [timed(work, device) for _ in range(repeats + 1)][1:]


def random_eva(config: EvaConfig, device: str) -> EvaClipEncoder:
    """The tower with random weights that are bf16 from the start: 15 GB instead of 30."""
    tower = build_eva(config).to(torch.bfloat16).to_empty(device=device)
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.fill_(1)
            else:
                weight.normal_(std=0.02)
    return EvaClipEncoder(EVA, tower, device=device)


def operations(config: EvaConfig) -> float:
    """Floating point operations of one image: projections, attention, MLP."""
    tokens = (config.image_pixels // config.patch_pixels) ** 2 + 1
    matrices = tokens * (4 + 2 * config.mlp_ratio) * config.width**2
    attention = 2 * tokens**2 * config.width
    return 2 * config.layers * (matrices + attention)


def matrix_rate(device: str) -> float:
    """Operations per second of large bf16 matrix products."""
    left, right = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))

    def work() -> None:
        for _ in range(PRODUCTS):
            left @ right

    timed(work, device)
    return PRODUCTS * 2 * MATRIX**3 / timed(work, device)


def timed(work: Callable[[], Any], device: str) -> float:
    """Wall seconds until the device has done it."""
    synchronise = torch.cuda.synchronize if device == "cuda" else int
    synchronise()
    begin = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - begin
