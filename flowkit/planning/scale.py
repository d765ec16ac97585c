"""What an experiment would take with N images, of which nothing need be there: `flowkit plan CONFIG --images 5M`.

    stores         size of the token store of a tar x tars, for each way to keep tokens (planning/sizes.py)
    extraction     images / rate of each encoder; a job takes shards_per_job tars
    training       samples seen / rate; samples seen = epochs x samples, or steps x batch
    reading        rate x bytes of a sample as it lies on disk
    bookkeeping    of each training process: three int32 an image for the pairs, three int64 a sample for the order
    cost           hours of a job x what an hour of it bills

Rates and what was assumed come with their sources. Nothing is listed, fetched or made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from flowkit.datasets import CocoDataset, DemoDataset, FolderDataset, HubDataset, SolidsDataset
from flowkit.encoders.token_shapes import EncoderShape, encoder_shape
from flowkit.machine import machine_of
from flowkit.planning.billing import Ask, MachineFacts, Partition, Quota, machine_facts, sbu_per_hour
from flowkit.planning.cards import Card, card_of
from flowkit.planning.data_facts import made_tar_bytes
from flowkit.planning.rates import Rate, Rates, Work, decoding_rate
from flowkit.planning.scale_parts import (
    Cost,
    ExtractionLine,
    QuotaUse,
    StoreLine,
    Tars,
    TrainingLine,
)
from flowkit.planning.sizes import RESULT, Amount, float16_records, int8_records, pairs_size, store_size
from flowkit.planning.work import encoder_operations, training_operations
from flowkit.provenance import read_json
from flowkit.sections import Data, Encoder, Train
from flowkit.slurm.job_requests import JobRequests
from flowkit.stages.specs import Plan

IMAGES_PER_TAR = 2605
"""Of BLIP3o-Pretrain-Short-Caption, by what others who read it say."""
IMAGE_BYTES = 79_000
"""Of a photograph of 640 x 480 pixels as JPEG of quality 90, with what a tar adds."""
READ_GB_PER_S = 2.0
PAIR_BYTES, ORDER_BYTES = 3 * 4, 3 * 8
"""In memory, for an image and for a sample."""
STORAGES = {
    "fp16": ("float16", "float16"),
    "int8 source": ("int8", "float16"),
    "int8 both": ("int8", "int8"),
}
"""Ways to keep the tokens of source and target."""
IN_BF16 = {"precision": "bf16"}
LAYOUTS: tuple[str, ...] = get_args(Data.model_fields["layout"].annotation)


@dataclass(frozen=True)
class ScalePlan:
    """The plan for `images` images (rows of token stores: each view of an object counts)."""

    plan: Plan
    requests: JobRequests
    facts: MachineFacts
    images: int

    # ---- the data

    @cached_property
    def dataset(self) -> HubDataset | Any:
        """The training set as it is configured, of whatever size."""
        return self.plan.config.datasets[self.plan.config.data.train]

    @cached_property
    def listed(self) -> list[int]:
        """Bytes of the tars of the training set, if they were listed."""
        if isinstance(self.dataset, HubDataset):
            file = self.plan.places.listing(self.dataset.repository, self.dataset.revision)
            return [int(tar["bytes"]) for tar in read_json(file)["tars"]] if file.is_file() else []
        return []

    @cached_property
    def tars(self) -> Tars:
        """The tars that hold the images."""
        each, listed = self.images_per_shard or IMAGES_PER_TAR, self.listed
        count = -(-self.images // each)
        size = sum(listed) // len(listed) if listed else self._bytes_of_a_tar(each)
        kept = (RESULT + Amount(size, 1)).times(count)
        if isinstance(self.dataset, FolderDataset):  # they stay where the user has them
            kept = RESULT
        return Tars(count, each, size, kept)

    def _bytes_of_a_tar(self, images: int) -> int:
        if isinstance(self.dataset, DemoDataset | SolidsDataset | CocoDataset):
            return made_tar_bytes(self.dataset, images)
        return images * IMAGE_BYTES

    @property
    def images_per_shard(self) -> int | None:
        """As the configuration says; None where it leaves that to the tars."""
        if hasattr(self.dataset, "images_per_shard"):
            return int(self.dataset.images_per_shard)
        limit = self.dataset.samples_per_shard
        return None if limit is None else int(limit * self.dataset.views)

    # ---- storage

    @cached_property
    def shapes(self) -> tuple[EncoderShape, EncoderShape]:
        """Tokens of source and target."""
        encoders = self.plan.config.encoders
        return encoder_shape(encoders.source.name), encoder_shape(encoders.target.name)

    @cached_property
    def stores(self) -> list[StoreLine]:
        """The token stores of all images, by how they are kept."""
        return [self._store_line(storage) for storage in STORAGES]

    def store(self, storage: str) -> StoreLine:
        """Return one of `stores`."""
        return next(line for line in self.stores if line.storage == storage)

    def _store_line(self, storage: str) -> StoreLine:
        stored, converting, image_bytes = Amount(), Amount(), 0
        for shape, kept in zip(self.shapes, STORAGES[storage], strict=True):
            stored += self._of_all_tars(shape, kept)
            image_bytes += store_size(shape, 1001, kept).bytes - store_size(shape, 1000, kept).bytes
            if kept != "float16":
                converting += self._of_all_tars(shape, "float16")
        pairs = pairs_size(self.images, self.tars.count)
        reads = {layout: self._read_bytes(storage, layout) for layout in LAYOUTS}
        return StoreLine(storage, stored + pairs, converting, image_bytes, reads, storage != "int8 both")

    def _of_all_tars(self, shape: EncoderShape, storage: str) -> Amount:
        full, rest = divmod(self.images, self.tars.images)
        last = store_size(shape, rest, storage) if rest else Amount()
        return store_size(shape, self.tars.images, storage).times(full) + last

    def _read_bytes(self, storage: str, layout: str) -> int:
        """Bytes of one image as training reads them: whole records, whatever part of them is used."""
        found = 0
        for shape, kept in zip(self.shapes, STORAGES[storage], strict=True):
            tokens, pooled = float16_records(shape)
            if layout == "pooled":
                found += pooled.stride
            else:
                found += sum(one.stride for one in int8_records(shape)) if kept == "int8" else tokens.stride
        return found

    @cached_property
    def quotas(self) -> list[QuotaUse]:
        """The quota of the data root and what it has room for, first; then the others that the machine names."""
        own = self.facts.quota_of(self.plan.places.data_root)
        others = [quota for quota in self.facts.quotas if quota is not own]
        return [self._use(quota) for quota in ([own] if own else []) + others]

    @property
    def own_quota(self) -> QuotaUse | None:
        """The quota that holds for the data root."""
        own = self.facts.quota_of(self.plan.places.data_root)
        return None if own is None else self.quotas[0]

    def _use(self, quota: Quota) -> QuotaUse:
        room: dict[str, int | None] = {}
        tars = self.tars.kept
        for line in self.stores:
            image_bytes = line.image_bytes + tars.bytes / self.images
            by_bytes = None if quota.limit_bytes is None else int(quota.limit_bytes / image_bytes)
            files = (line.stored + tars).files / self.images
            by_files = None if quota.files is None else int(quota.files / files)
            room[line.storage] = min((one for one in (by_bytes, by_files) if one is not None), default=None)
        return QuotaUse(quota, room)

    # ---- extraction

    @cached_property
    def extraction_ask(self) -> Ask:
        """What an extraction job asks for."""
        settings = self.requests.stage("extract")
        return Ask(
            settings.partition, settings.gpus or 1, settings.cpus, settings.memory_gb, settings.minutes
        )

    @property
    def encoders_used(self) -> list[Encoder]:
        """Source and target; one where they are the same."""
        encoders = self.plan.config.encoders
        return list(dict.fromkeys((encoders.source, encoders.target)))

    @cached_property
    def extraction(self) -> list[ExtractionLine]:
        """Both encoders over all images."""
        return [self._extraction(one) for one in self.encoders_used]

    def _extraction(self, encoder: Encoder) -> ExtractionLine:
        rate = self._encoding_rate(encoder)
        tars_of_job = min(self.plan.shards_per_job, self.tars.count)
        jobs, loading = -(-self.tars.count // tars_of_job), self.loading_seconds(encoder) / 3600
        hours = rate.gpu_hours(self.images)
        job_hours = rate.gpu_hours(min(self.images, tars_of_job * self.tars.images))
        return ExtractionLine(
            encoder.name,
            encoder.precision,
            encoder_operations(encoder.name),
            rate,
            self.cost_of(None if hours is None else hours + jobs * loading, self.extraction_ask),
            jobs,
            None if job_hours is None else job_hours + loading,
            _times(self._encoding_rate(encoder.model_copy(update=IN_BF16)), rate, encoder.precision),
        )

    def _encoding_rate(self, encoder: Encoder) -> Rate:
        encoders, ask = self.plan.config.encoders, self.extraction_ask
        work = Work(encoder_operations(encoder.name), encoder.precision, encoders.batch_size)
        decoding = decoding_rate(encoders.decode, ask.cpus)
        rates, identity = Rates(self.plan.places), self.plan.encoder_id(encoder)
        return rates.extraction(identity, encoder.name, work, self.card(ask), decoding)

    def loading_seconds(self, encoder: Encoder) -> float:
        """Return how long each job reads weights before its first image."""
        return encoder_shape(encoder.name).weight_bytes / self.read_limit

    # ---- training

    @cached_property
    def training(self) -> list[TrainingLine]:
        """Every run over all images."""
        return [self._training(run) for run in self.plan.config.runs]

    def _training(self, run: str) -> TrainingLine:
        config, sections = self.plan.config, self.plan.config.run(run)
        views = 1 if sections.model.views == "single" else self.dataset.views
        source, target = (self._as_sample(shape, views) for shape in self.shapes)
        operations = training_operations(tuple(sections.model.model_dump().items()), source, target, views)
        if sections.train.activation_checkpointing:
            operations *= 4 / 3  # the forward pass, a third of the work, is done twice
        train, ask = sections.train, self.training_ask(run)
        rate = self._training_rate(run, train, operations, views)
        samples = max(1, self.images // views)
        epochs = train.steps * train.batch_size / samples if train.epochs is None else float(train.epochs)
        reads = {line.storage: views * line.read_bytes[config.data.layout] for line in self.stores}
        in_bf16 = self._training_rate(run, train.model_copy(update=IN_BF16), operations, views)
        return TrainingLine(
            run,
            train.precision,
            views,
            operations,
            rate,
            samples,
            epochs,
            self.cost_of(rate.gpu_hours(epochs * samples), ask),
            ask.gpus * ask.nodes,
            reads,
            _times(in_bf16, rate, train.precision),
        )

    def _training_rate(self, run: str, train: Train, operations: float, views: int) -> Rate:
        config, sections, ask = self.plan.config, self.plan.config.run(run), self.training_ask(run)
        at_once = train.batch_size / (ask.gpus * ask.nodes * train.gradient_accumulation)
        values = {
            "model": sections.model.model_dump(),
            "objective": sections.objective.model_dump(),
            "train": train.model_dump(),
            "data": config.data.model_dump(),
            "encoders": config.encoders.model_dump(),
        }
        work = Work(operations, train.precision, at_once)
        return Rates(self.plan.places).training(values, views, work, self.card(ask))

    def _as_sample(self, shape: EncoderShape, views: int) -> EncoderShape:
        layout = self.plan.config.data.layout
        if layout == "pooled":
            return replace(shape, tokens=views, width=shape.pooled_width, grid=(1, 1))
        return replace(shape, tokens=views * (shape.tokens - (layout == "patches")))

    def training_ask(self, run: str) -> Ask:
        """Return what a job of a training asks for."""
        own = self.requests.training_of(run)
        cpus, gpus = own.cpus_per_task * own.tasks_per_node, own.gpus_per_node or 1
        return Ask(own.partition, gpus, cpus, own.memory_gb, own.minutes, own.nodes)

    @property
    def order_bytes(self) -> int:
        """Memory of each training process for pairs and order."""
        return self.images * PAIR_BYTES + max(line.samples for line in self.training) * ORDER_BYTES

    def training_memory(self, run: str) -> int:
        """Bytes that each process of a training may use."""
        own = self.requests.training_of(run)
        return own.memory_gb * 2**30 // own.tasks_per_node

    # ---- jobs and cost

    @cached_property
    def jobs(self) -> dict[str, int]:
        """How many jobs each stage that goes by tars has, with the configured storage."""
        batches = -(-self.tars.count // self.plan.shards_per_job)
        found = {"fetch": batches} if isinstance(self.dataset, HubDataset) else {}
        found["extract"] = batches * len(self.extraction)
        return found | ({"convert": batches} if self.storage != "fp16" else {})

    @property
    def storage(self) -> str:
        """How the configuration keeps tokens."""
        return "int8 source" if self.plan.config.encoders.source_storage == "int8" else "fp16"

    @property
    def read_limit(self) -> float:
        """Bytes per second that the file system gives each GPU."""
        return (self.facts.read_gb_per_s or READ_GB_PER_S) * 1e9

    def card(self, ask: Ask) -> Card:
        """Return the GPU that a job gets."""
        return card_of(ask.partition, self._partition(ask))

    def _partition(self, ask: Ask) -> Partition | None:
        return self.facts.partitions.get(ask.partition)

    def cost_of(self, gpu_hours: float | None, ask: Ask) -> Cost:
        """Return what GPU hours of such jobs cost."""
        if gpu_hours is None:
            return Cost(None, None, None)
        partition, prices = self._partition(ask), self.facts.prices
        job_hours = gpu_hours / (ask.gpus * ask.nodes)
        sbu = None if partition is None else job_hours * sbu_per_hour(ask, partition)
        money = sbu * prices.per_sbu if sbu is not None and prices.per_sbu is not None else None
        if money is None and prices.per_gpu_hour is not None:
            money = gpu_hours * prices.per_gpu_hour
        return Cost(gpu_hours, sbu, money)


def scale_plan(plan: Plan, profile: Path | None, images: int) -> ScalePlan:
    """Return the plan for `images` images on the machine of a profile; without one, on an unnamed machine."""
    machine = machine_of(profile, results=plan.places.results, data_root=plan.places.data_root)
    requests = JobRequests(machine.stages, machine.training, machine.account)
    return ScalePlan(plan, requests, machine_facts(profile), images)


def _times(in_bf16: Rate, rate: Rate, precision: str) -> float | None:
    """Return how many times as fast bf16 would be as fp32."""
    if precision != "fp32" or in_bf16.per_second is None or rate.per_second is None:
        return None
    return in_bf16.per_second / rate.per_second
