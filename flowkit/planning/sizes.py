"""How large a result will be: bytes on disk, and files with their folders, which is what quotas count.

A result of any stage is a manifest, a run record, a lock, both once more by key, and three folders. Token stores are
record files (features/records.py) of exactly known size; tables and documents beside them are small and rounded.

    checkpoint of a training = weights + their average + optimizer (Muon: 1 number per weight, AdamW: 2), in float32
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from flowkit.encoders.token_shapes import EncoderShape
from flowkit.errors import ConfigError
from flowkit.features.records import RecordLayout

RESULT_FILES, RESULT_BYTES = 8, 7_000
"""Of every result beside its content: five documents, three folders."""
DOCUMENT_BYTES, TABLE_BYTES, PAIRS_BYTES = 1_200, 3_000, 7_200
SAMPLE_ROW_BYTES, KEY_ROW_BYTES, PAIR_ROW_BYTES = 150, 12, 7
"""A line of samples.parquet with and without caption and digest, and of pairs.parquet."""
PAIR_TAR_BYTES = 1_180
"""What the pairs and their index of stores say of a tar."""
METRICS_LINE_BYTES = 550
TENSOR_BYTES = 120
"""How a tensor is described at the head of a safetensors file."""
FLOAT32_BYTES = 4
NUMPY_HEADER_BYTES = 128
TAR_BLOCK, TAR_RECORD, DEMO_MEMBERS = 512, 10_240, 3
"""A member of a tar is a block of description and whole blocks of content; a tar is whole records."""
SOLIDS_VIEW_BLOCKS = 7
"""Blocks of content of a view of solids, which is stored without compression."""


@dataclass(frozen=True)
class Amount:
    """Bytes, and files with folders."""

    bytes: int = 0
    files: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.bytes + other.bytes, self.files + other.files)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(max(0, self.bytes - other.bytes), max(0, self.files - other.files))

    def __bool__(self) -> bool:
        return bool(self.bytes or self.files)

    def times(self, count: int) -> Amount:
        """Return as much `count` times."""
        return Amount(self.bytes * count, self.files * count)


RESULT = Amount(RESULT_BYTES, RESULT_FILES)


@dataclass(frozen=True)
class NetworkSize:
    """Parameters in all, those that Muon may take, and tensors, in all and of Muon."""

    parameters: int
    matrix_parameters: int
    tensors: int
    matrices: int


def float16_records(shape: EncoderShape) -> tuple[RecordLayout, RecordLayout]:
    """Return the layouts of tokens and pooled embeddings."""
    return RecordLayout((shape.tokens, shape.width)), RecordLayout((shape.pooled_width,))


def int8_records(shape: EncoderShape) -> tuple[RecordLayout, RecordLayout]:
    """Return the layouts of quantised tokens and their scales."""
    return RecordLayout((shape.tokens, shape.width), "int8"), RecordLayout((shape.tokens,), "float32")


def store_size(shape: EncoderShape, samples: int, storage: str = "float16") -> Amount:
    """Return the size of the token store of one tar, with the result around it."""
    tokens, pooled = float16_records(shape)
    arrays = [(tokens, samples), (pooled, samples)]
    if storage == "int8":
        channels = RecordLayout((shape.width,), "float32")
        arrays = [*((layout, samples) for layout in int8_records(shape)), (channels, 2), (pooled, samples)]
    content = sum(layout.file_bytes(count) for layout, count in arrays)
    documents = (1 + len(arrays)) * DOCUMENT_BYTES + TABLE_BYTES + samples * SAMPLE_ROW_BYTES
    # of an array: folder, document, data; beside them the group's document and two tables
    return RESULT + Amount(content + documents, 3 * len(arrays) + 3)


def bytes_per_sample(shape: EncoderShape, storage: str = "float16") -> int:
    """Return what one more sample takes in a store."""
    return store_size(shape, 1001, storage).bytes - store_size(shape, 1000, storage).bytes


def samples_size(tokens: int, width: int, images: Sequence[int], noise_folders: int = 0) -> Amount:
    """Return the size of the samples of a run: token stores without pooled embeddings of so many images each."""
    size = RESULT + Amount(0, noise_folders)
    for count in images:
        content = RecordLayout((tokens, width)).file_bytes(count)
        size += Amount(content + 2 * DOCUMENT_BYTES + TABLE_BYTES + count * KEY_ROW_BYTES, 7)
    return size


def unrounded_size(tokens: int, width: int, images: int) -> Amount:
    """Return the size of samples that were not rounded to float16: one array and its keys."""
    content = NUMPY_HEADER_BYTES + FLOAT32_BYTES * tokens * width * images
    return RESULT + Amount(content + images * KEY_ROW_BYTES, 3)


def export_size(numbers: Sequence[int], consumers: int, images: int) -> Amount:
    """Return the size of one sampler's exports: tensors with so many numbers per image, shared by `consumers`.

    A tensor has its keys beside it and lies there once; each consumer has a folder and a description.
    """
    content = sum(FLOAT32_BYTES * images * number + images * KEY_ROW_BYTES for number in numbers)
    return Amount(content + consumers * DOCUMENT_BYTES, 1 + 2 * consumers + 2 * len(numbers))


def pairs_size(pairs: int, tars: int) -> Amount:
    """Return the size of a pairs table and of the index of its stores."""
    return Amount(PAIRS_BYTES + pairs * PAIR_ROW_BYTES + tars * PAIR_TAR_BYTES, RESULT_FILES + 2)


def demo_tar_bytes(images: int) -> int:
    """Return the size of a tar of drawn images, each with caption and attributes of less than a block."""
    return _tar_bytes(images * DEMO_MEMBERS * 2)


def solids_tar_bytes(objects: int, views: int) -> int:
    """Return the size of a tar of drawn solids: their views, and caption and attributes of less than a block."""
    return _tar_bytes(objects * (views * (1 + SOLIDS_VIEW_BLOCKS) + 2 * 2))


def _tar_bytes(blocks: int) -> int:
    return -(-(blocks + 2) * TAR_BLOCK // TAR_RECORD) * TAR_RECORD


@cache
def network_size(
    model: tuple[tuple[str, Any], ...], source: EncoderShape, target: EncoderShape, views: int = 1
) -> NetworkSize:
    """Return the size of the network of a configuration (its items); builds it without memory, which loads torch.

    The shapes are those of the layout that is translated. Raises `ConfigError` for shapes that do not fit together.
    """
    network = network_without_memory(model, source, target, views)
    everything, matrices = list(network.parameters()), network.token_matrices()
    return NetworkSize(
        sum(parameter.numel() for parameter in everything),
        sum(parameter.numel() for parameter in matrices),
        len(everything),
        len(matrices),
    )


def network_without_memory(
    model: tuple[tuple[str, Any], ...], source: EncoderShape, target: EncoderShape, views: int = 1
) -> Any:
    """Return the network of a configuration (its items) on no device; raises `ConfigError` where it fits no shapes."""
    import torch

    from flowkit.stages.train import model_config
    from flowkit.translator import build_network

    try:
        config = model_config(
            dict(model),
            source_shape=(source.tokens, source.width),
            target_shape=(target.tokens, target.width),
            grid=target.grid,
            views=views,
        )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    with torch.device("meta"):
        return build_network(config)


def weights_size(network: NetworkSize, source: EncoderShape, target: EncoderShape) -> Amount:
    """Return the size of a translator's folder: weights, statistics, config."""
    tokens = target.tokens
    statistics = 2 * source.width + 2 * target.width + tokens**2 + target.width**2 + tokens * target.width
    described = (network.tensors + 7) * TENSOR_BYTES + DOCUMENT_BYTES
    return Amount(FLOAT32_BYTES * (network.parameters + statistics) + described, 3)


def trained_size(weights: Amount, steps: int) -> Amount:
    """Return the size of a finished training: weights at the end and at the best, and a line per step."""
    # the folder of the best
    return RESULT + weights.times(2) + Amount(steps * METRICS_LINE_BYTES, 2)


def checkpoint_size(network: NetworkSize, optimizer: str) -> Amount:
    """Return the size of one checkpoint from which a training goes on."""
    of_muon, muon_tensors = (network.matrix_parameters, network.matrices) if optimizer == "muon" else (0, 0)
    numbers = 2 * network.parameters + of_muon + 2 * (network.parameters - of_muon)
    adamw_tensors = network.tensors - muon_tensors
    tensors = 2 * network.tensors + muon_tensors + 3 * adamw_tensors
    content = FLOAT32_BYTES * (numbers + adamw_tensors) + tensors * TENSOR_BYTES
    return Amount(content + DOCUMENT_BYTES, 3)
