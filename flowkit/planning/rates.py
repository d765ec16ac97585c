"""How fast encoders and trainings go on one GPU: measured where something was measured, else assumed, with the source.

In this order: run records of the same encoder or training, rows of `make bench` on a GPU, an assumption. Measured
counts what ran on a GPU that is called what the machine says; where it says nothing, what ran on any GPU.

    rate by bench  = share of the matrix rate x matrix rate of the card / operations of an image
    rate assumed   = share of the data sheet's rate in the plan's precision x that rate / operations of an image

Benches measure in bf16, so they say nothing of a plan in another precision. No encoder is faster than images are
decoded. Of networks so small that a GPU works through a batch in less than `SHORTEST_PASS` no rate follows from their
operations: starting kernels takes most of the time.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from flowkit.encoders.names import split_name
from flowkit.errors import StageError
from flowkit.paths import MANIFEST, RUN_RECORD, Places
from flowkit.planning.cards import Card
from flowkit.planning.measured import SAME_RATE
from flowkit.progress import logger
from flowkit.provenance import read_json

TERA = 1e12
NETWORK = "config.json"
"""Of a trained translator: the shapes of its network."""
RECORDS_READ = 200
"""Run records of one encoder that are looked at, so that asking stays quick."""
BENCH_PRECISION = "bf16"
EXTRACTION_SHARE, TRAINING_SHARE = 0.425, 0.35
"""Shares of the data sheet's rate where nothing was measured: the middles of 35 to 50 % and of 30 to 40 %, which
large matrix products in frozen towers, and in the steps of a training, usually reach in bf16 on an H100."""
NOT_MEASURED = "nothing was measured on such a GPU; large networks reach it in bf16"
TOO_SMALL = "starting kernels takes most of the time; a run record of the same work tells its rate"
SHORTEST_PASS = 0.01
"""Seconds of a batch by its operations: a thousand kernels of 10 microseconds, which is what a pass starts."""
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
class Rate:
    """Images or samples per second on one GPU, where that comes from, and why it is assumed if it was not measured.

    None: nobody can tell.
    """

    per_second: float | None
    is_measured: bool
    source: str
    why: str = ""

    def gpu_hours(self, count: float) -> float | None:
        """GPU hours of so many."""
        return None if self.per_second is None else count / self.per_second / 3600


@dataclass(frozen=True)
class Work:
    """What a GPU does at a time: operations of an image or sample, precision, and how many it takes at once."""

    operations: float
    precision: str
    batch: float = 1


def decoding_rate(decode: str, cores: int) -> Rate:
    """Return the images per second that some cores can decode; where none are asked for, one does."""
    each, count = DECODED_PER_CORE[decode], max(1, cores)
    why = "measured on a core of a server, with pictures of 640 x 480; more stages.extract.cpus decode more"
    if not cores:
        why = "no profile sets stages.extract.cpus, so extraction asks for one core"
    text = f"{count} core{'s' if count > 1 else ''} to decode, {each:.0f} images/s each"
    return Rate(count * each, False, text, why)


def slower(first: Rate, second: Rate) -> Rate:
    """Return the rate that holds the other up; an unknown one may be as slow as it likes."""
    if first.per_second is None or second.per_second is None:
        return first if first.per_second is None else second
    return first if first.per_second <= second.per_second else second


@dataclass(frozen=True)
class Rates:
    """Finds rates below the folders of results and data."""

    places: Places

    def extraction(self, encoder_id: str, name: str, work: Work, card: Card, decoding: Rate) -> Rate:
        """Return the images per second of one encoder, none of which is faster than they are decoded."""
        found = self._records_of_extraction(encoder_id, card)
        if found is not None:
            return found
        row = self._bench_row(f"extraction, {split_name(name).model} bf16, images per second", card, work)
        if row is not None:
            return slower(Rate(row["value"], True, _bench_source(row)), decoding)
        return slower(self._by_operations("extraction", work, EXTRACTION_SHARE, card), decoding)

    def training(self, spec_values: Mapping[str, Any], views: int, work: Work, card: Card) -> Rate:
        """Return the samples per second of a training with these values, of samples of so many views."""
        found = self._record_of_training(spec_values, views, card)
        return found or self._by_operations("training", work, TRAINING_SHARE, card)

    def _by_operations(self, what: str, work: Work, assumed: float, card: Card) -> Rate:
        matrix, share = (self._bench_row(name, card, work) for name in MATRIX_ROWS[what])
        if matrix is not None and share is not None:
            per_second = share["value"] * matrix["value"] * TERA / work.operations
            source = f"{share['value']:.0%} of {matrix['value']:.0f} TFLOP/s, {_bench_source(share)}"
            rate = Rate(per_second, True, source)
        else:
            peak = card.peak(work.precision)
            source = f"{100 * assumed:g}% of {peak:g} TFLOP/s in {work.precision} ({card.name})"
            rate = Rate(per_second := assumed * peak * TERA / work.operations, False, source, NOT_MEASURED)
        if work.batch / per_second >= SHORTEST_PASS:
            return rate
        least = SHORTEST_PASS * per_second * work.operations / TERA
        size = f"a batch is {work.batch * work.operations / TERA:.2g} TFLOP, below {least:.2g}"
        return Rate(None, False, f"not measured, too small to guess: {size}", TOO_SMALL)

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

    def _record_of_training(self, values: Mapping[str, Any], views: int, card: Card) -> Rate | None:
        files = sorted(self.places.results.glob(f"*/runs/*/train/{RUN_RECORD}"))
        for file in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
            for record in _readable([file]):
                device, rate = _device_of(record), record.get("rates", {}).get("samples_per_s")
                if (
                    device
                    and rate
                    and card.is_called(device)
                    and _cost(record["spec"]["values"]) == _cost(values)
                    and _views_of(record, file.parent) == views
                ):
                    made = f"{record['spec']['experiment']}/{record['spec']['target']['run']}"
                    return Rate(float(rate) / int(record.get("tasks", 1)), True, f"{made}, {device}")
        return None

    def _bench_row(self, name: str, card: Card, work: Work) -> dict[str, Any] | None:
        if work.precision != BENCH_PRECISION:
            return None
        for file in sorted((self.places.results / "bench").glob("*.json")):
            for row in _bench_rows(file, file.stat().st_mtime_ns):
                is_gpu = not row["device"].endswith(" cores")
                if row["name"] == name and row["value"] > 0 and is_gpu and card.is_called(row["device"]):
                    return {**row, "file": file.name}
        return None


@cache
def _bench_rows(file: Path, changed: int) -> list[dict[str, Any]]:
    """Return the rows of a report of benchmarks, read once until it is `changed`; another file has none."""
    try:
        content = read_json(file)
    except StageError as fault:
        logger.warning("file=%s skipped: %s", file, fault)
        return []
    rows = content if isinstance(content, list) else [content]
    if all(map(_is_row, rows)):
        return rows
    logger.warning(
        "file=%s skipped: no list of rows with name, value and device as make bench writes it; move it away",
        file,
    )
    return []


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("value"), int | float):
        return False
    return isinstance(row.get("name"), str) and isinstance(row.get("device"), str)


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
    data = [values.get("data", {}).get(name) for name in ("layout", "source_tokens")]
    return [values.get("model"), values.get("objective", {}).get("kind"), data, train, names]


def _views_of(record: Mapping[str, Any], folder: Path) -> int | None:
    """Return the views of a sample of a training: those of its network; None where nothing tells them any more."""
    if record["spec"]["values"]["model"].get("views") == "single":
        return 1
    try:
        content = folder / read_json(folder / MANIFEST)["content"]
        return int(read_json(content / NETWORK)["network"].get("views", 1))
    except (StageError, KeyError):
        return None
