"""How fast encoders and trainings go on one GPU: measured where something was measured, else assumed, with the source.

In this order: run records of the same encoder or training, rows of `make bench` on a GPU, an assumption. Measured
counts what ran on a GPU that is called what the machine says; where it says nothing, what ran on any GPU.

    rate by bench  = share of the matrix rate x matrix rate of the card / operations of an image
    rate assumed   = share of the data sheet's rate x that rate / operations of an image
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from flowkit.encoders.names import split_name
from flowkit.errors import StageError
from flowkit.paths import RUN_RECORD, Places
from flowkit.planning.billing import Partition
from flowkit.planning.measured import SAME_RATE
from flowkit.provenance import read_json

TERA = 1e12
RECORDS_READ = 200
"""Run records of one encoder that are looked at, so that asking stays quick."""
EXTRACTION_SHARE, TRAINING_SHARE = 0.425, 0.35
"""Shares of the data sheet's bf16 rate where nothing was measured: the middles of 35 to 50 % and of 30 to 40 %, which
large matrix products in frozen towers, and in the steps of a training, usually reach on an H100."""
USUAL_GPU, USUAL_TFLOPS = "H100", 989.0
"""Card where the machine names none, and its dense bf16 rate by the data sheet."""
DECODED_PER_CORE = {"exact": 181.0, "fast": 458.0}
"""Images of 640 x 480 pixels that a core decodes and resizes in a second, by `encoders.decode`."""
MATRIX_ROWS = {
    "extraction": (
        "measured bf16 matrix rate, TFLOP/s",
        "extraction, EVA-CLIP-8B + ViT-L-14-quickgelu / measured matrix rate",
    ),
    "training": (
        "model on GPU, measured bf16 matrix rate, TFLOP/s",
        "model on GPU, training step, share of the matrix rate",
    ),
}
"""Rows of `make bench`: the rate of large products, and the share of it that the whole thing reaches."""


@dataclass(frozen=True)
class Card:
    """The GPU that is planned for. `source` says where its rate stands."""

    name: str
    tflops: float
    source: str
    is_named: bool

    def is_called(self, device: str) -> bool:
        """Whether a device may be such a card: another one goes at another rate."""
        return not self.is_named or self.name.lower() in device.lower()


@dataclass(frozen=True)
class Rate:
    """Images or samples per second on one GPU, and where that comes from."""

    per_second: float
    is_measured: bool
    source: str

    def gpu_hours(self, count: float) -> float:
        """GPU hours of so many."""
        return count / self.per_second / 3600


def card_of(partition_name: str, partition: Partition | None) -> Card:
    """Return the GPU of a partition; where the machine does not name one, the usual one."""
    if partition is None or not partition.gpu:
        return Card(USUAL_GPU, USUAL_TFLOPS, "no GPU is named in machine.yaml", is_named=False)
    if partition.bf16_tflops is None:
        return Card(partition.gpu, USUAL_TFLOPS, f"bf16_tflops of {partition_name} is not set", is_named=True)
    return Card(partition.gpu, partition.bf16_tflops, f"machine.yaml, {partition_name}", is_named=True)


def decoding_rate(decode: str, cores: int) -> Rate:
    """Return the images per second that some cores can decode; at least one core does."""
    each, count = DECODED_PER_CORE[decode], max(1, cores)
    return Rate(
        count * each, False, f"{count} core{'s' if count > 1 else ''} to decode, {each:.0f} images/s each"
    )


def slower(first: Rate, second: Rate) -> Rate:
    """Return the rate that holds the other up."""
    return min(first, second, key=lambda rate: rate.per_second)


@dataclass(frozen=True)
class Rates:
    """Finds rates below the folders of results and data."""

    places: Places

    def extraction(self, encoder_id: str, name: str, operations: float, card: Card) -> Rate:
        """Return the images per second of one encoder."""
        found = self._records_of_extraction(encoder_id, card)
        if found is not None:
            return found
        row = self._bench_row(f"extraction, {split_name(name).model} bf16, images per second", card)
        if row is not None:
            return Rate(row["value"], True, _bench_source(row))
        return self._by_operations("extraction", operations, EXTRACTION_SHARE, card)

    def training(self, spec_values: Mapping[str, Any], operations: float, card: Card) -> Rate:
        """Return the samples per second of a training with these values."""
        found = self._record_of_training(spec_values, card)
        return found or self._by_operations("training", operations, TRAINING_SHARE, card)

    def _by_operations(self, what: str, operations: float, assumed: float, card: Card) -> Rate:
        matrix, share = (self._bench_row(name, card) for name in MATRIX_ROWS[what])
        if matrix is not None and share is not None:
            source = f"{share['value']:.0%} of {matrix['value']:.0f} TFLOP/s, {_bench_source(share)}"
            return Rate(share["value"] * matrix["value"] * TERA / operations, True, source)
        source = f"{assumed:.0%} of {card.tflops:.0f} TFLOP/s ({card.name})"
        return Rate(assumed * card.tflops * TERA / operations, False, source)

    def _records_of_extraction(self, encoder_id: str, card: Card) -> Rate | None:
        records = self.places.data_root.glob(f"features/*/{encoder_id}/*/{RUN_RECORD}")
        rates: dict[str, list[float]] = {}
        for record in _readable(islice(records, RECORDS_READ)):
            device, rate = _device_of(record), record.get("rates", {}).get("images_per_s")
            if device and rate and card.is_called(device):
                rates.setdefault(device, []).append(float(rate))
        if not rates:
            return None
        device = max(rates, key=lambda one: len(rates[one]))
        return Rate(statistics.median(rates[device]), True, f"{len(rates[device])} extracted tars, {device}")

    def _record_of_training(self, values: Mapping[str, Any], card: Card) -> Rate | None:
        files = sorted(self.places.results.glob(f"*/runs/*/train/{RUN_RECORD}"))
        for record in _readable(sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)):
            device, rate = _device_of(record), record.get("rates", {}).get("samples_per_s")
            if (
                device
                and rate
                and card.is_called(device)
                and _cost(record["spec"]["values"]) == _cost(values)
            ):
                made = f"{record['spec']['experiment']}/{record['spec']['target']['run']}"
                return Rate(float(rate) / int(record.get("tasks", 1)), True, f"{made}, {device}")
        return None

    def _bench_row(self, name: str, card: Card) -> dict[str, Any] | None:
        for file in sorted((self.places.results / "bench").glob("*.json")):
            for row in read_json(file):
                if (
                    row.get("name") == name
                    and not row["device"].endswith(" cores")
                    and card.is_called(row["device"])
                ):
                    return {**row, "file": file.name}
        return None


def _bench_source(row: Mapping[str, Any]) -> str:
    return f"{row['file']} on {row['device']}"


def _readable(files: Iterator[Path] | list[Path]) -> Iterator[dict[str, Any]]:
    """Yield records; one that is damaged or just being replaced tells nothing."""
    for file in files:
        try:
            yield read_json(file)
        except StageError:
            continue


def _device_of(record: Mapping[str, Any]) -> str:
    """Return the GPU of a run record, nothing where it used none."""
    accelerator = record.get("host", {}).get("accelerator")
    return str(accelerator["name"]) if accelerator else ""


def _cost(values: Mapping[str, Any]) -> list[Any]:
    """What decides how much a training sample costs."""
    train = [values.get("train", {}).get(name) for name in SAME_RATE]
    encoders = values.get("encoders", {})
    names = [encoders.get(role, {}).get("name") for role in ("source", "target")]
    kind, layout = values.get("objective", {}).get("kind"), values.get("data", {}).get("layout")
    return [values.get("model"), kind, layout, train, names]
