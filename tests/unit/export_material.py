"""Stores, pairs, a head and a trained flow with its samples, all tiny, for tests of what comes after sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from flowkit.features.pairs import merge_pairs
from flowkit.features.samples import write_tokens
from flowkit.features.tables import SampleRow
from flowkit.features.writer import TokenStoreWriter
from flowkit.paths import HEAD, PAIRS, Places
from flowkit.provenance import write_json
from flowkit.stages.session import Spec, committed

IMAGES, TOKENS, CHANNELS, WIDTH = 10, 5, 12, 6
SAMPLERS = ("heun-2", "euler-1")
KEYS = [f"image-{number:02d}" for number in range(IMAGES)]
EXPECTED_ENCODER = "open_clip:ViT-L-14-quickgelu/openai"


def true_tokens() -> NDArray[np.float16]:
    """The target's tokens, with a large channel and an offset: not standardised."""
    tokens = np.random.default_rng(1).normal(3, 2, (IMAGES, TOKENS, CHANNELS))
    tokens[..., 4] *= 20
    return tokens.astype(np.float16)


def head_tensors() -> dict[str, torch.Tensor]:
    """A head that fits the tokens."""
    generator = torch.Generator().manual_seed(4)
    return {
        "norm.weight": torch.rand(CHANNELS, generator=generator) + 0.5,
        "norm.bias": torch.randn(CHANNELS, generator=generator),
        "norm.epsilon": torch.tensor([1e-5]),
        "projection.weight": torch.randn(WIDTH, CHANNELS, generator=generator),
    }


def write_results(
    root: Path,
    *,
    encoder: str = EXPECTED_ENCODER,
    predicted: dict[str, NDArray[np.floating]] | None = None,
    tokens: NDArray[np.floating] | None = None,
) -> Places:
    """Results of an experiment with the run `flow`, as far as its samples; `predicted` by sampler."""
    places = Places("toy", root / "results", root / "data")
    tokens = true_tokens() if tokens is None else tokens
    for side, name in (("source", "demo-eva"), ("target", encoder)):
        folder = places.store("test", side, "00000.tar")
        with TokenStoreWriter(
            folder / "content",
            token_shape=tokens.shape[1:],
            pooled_width=WIDTH,
            attributes={
                "encoder": name,
                "has_cls": True,
                "grid": [2, 2],
                "weights_sha256": f"sha256 of {side}",
                "preprocessing": {"resize": f"that of {side}"},
                "source": {"name": "00000.tar", "sha256": "0"},
            },
        ) as writer:
            rows = [SampleRow(number, key) for number, key in enumerate(KEYS)]
            writer.append(tokens, np.ones((IMAGES, WIDTH), np.float32), rows, next_index=IMAGES)
            writer.finish()
        write_manifest(folder, {})
    pairs = places.pairs("test", "source", "target")
    stores = [[committed(places.store("test", side, "00000.tar"))[0]] for side in ("source", "target")]
    merge_pairs(*stores, pairs / "content" / PAIRS)
    write_manifest(pairs, {"tars": ["00000.tar"]})
    head = places.head("target")
    (head / "content").mkdir(parents=True)
    save_file(head_tensors(), head / "content" / HEAD)
    write_manifest(head, {})
    if predicted is None:
        generator = np.random.default_rng(2)
        predicted = {
            name: (tokens + generator.normal(0, 0.1, tokens.shape)).astype(np.float16) for name in SAMPLERS
        }
    write_samples(places, "flow", predicted)
    return places


def write_samples(
    places: Places, run: str, predicted: dict[str, NDArray[np.floating]], *, keys: list[str] = KEYS
) -> None:
    """Committed samples of a run."""
    folder = places.samples(run, "test")
    for sampler, tokens in predicted.items():
        write_tokens(
            folder / "content" / sampler, [tokens], {"run": run, "sampler": sampler}, keys=keys[: len(tokens)]
        )
    write_manifest(folder, {"samplers": list(predicted), "images": IMAGES})


def write_manifest(folder: Path, counts: dict[str, Any]) -> None:
    write_json(folder / "manifest.json", {"content": "content", "stage": "made", "counts": counts})


def export_spec(
    places: Places,
    *consumers: str,
    run: str = "flow",
    layout: str = "cls_patches",
    samplers: tuple[str, ...] | None = None,
    any_encoder: bool = False,
    file_format: str = "safetensors",
) -> Spec:
    """What stage `export` is asked."""
    export = {"consumers": consumers, "format": file_format, "any_encoder": any_encoder, "samplers": samplers}
    values = {"export": export, "evaluation": {"images": IMAGES}, "data": {"layout": layout}}
    target = {"run": run, "dataset": "test", "source": "source", "target": "target"}
    return Spec("export", target, values, places, ("code@1",))
