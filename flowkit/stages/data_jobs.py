"""The jobs that make data: tars, weights, token stores, pairs, and what evaluation needs of the target encoder.

Everything here lies below `data_root` and is shared by all experiments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flowkit.config import Config
from flowkit.datasets import CocoDataset, FolderDataset, HubDataset
from flowkit.encoders.weight_registry import brought_weights, encoder_family, weight_files
from flowkit.paths import Places, converted
from flowkit.provenance import digest_of
from flowkit.sections import Encoder
from flowkit.stages.datasets import hub_tars, tar_names
from flowkit.stages.fingerprint import code_of
from flowkit.stages.jobs import Job, rule_word
from flowkit.stages.session import Spec

EXTRACT_MEMORY_MB = {"demo-eva": 4000, "demo-vit": 4000, "open_clip": 8000, "eva_clip": 48_000}
"""What an extraction job needs by encoder family: weights, batches and decoded images."""


@dataclass(frozen=True)
class DataPlan:
    """The jobs below `data_root`. `shards_per_job` is the machine's and changes no result."""

    config: Config
    places: Places
    shards_per_job: int = 32

    def data_jobs(self) -> Iterator[Job]:
        """Yield the jobs, each after those that it depends on."""
        for dataset in self.datasets:
            yield from self._fetch(dataset)
            if not isinstance(self.config.datasets[dataset], HubDataset):
                yield self._shards(dataset)
        for encoder in {encoder.name: encoder for encoder in self._encoders}.values():
            yield self._weights(encoder)
        for dataset in self.datasets:
            for encoder in self._encoders:
                yield from self._extract(dataset, encoder)
            if self.config.encoders.source_storage == "int8":
                yield from self._convert(dataset)
            yield self._pairs(dataset)
        yield self._head()
        yield self._texts()

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets that play a part."""
        return list(dict.fromkeys((self.config.data.train, self.config.data.evaluation)))

    def tars(self, dataset: str) -> list[str]:
        """Return the names of the tars of a data set, known before anything runs."""
        if dataset not in self._tars:
            self._tars[dataset] = tar_names(self.config.datasets[dataset], self.places)
        return self._tars[dataset]

    @cached_property
    def _tars(self) -> dict[str, list[str]]:
        return {}

    def _batches(self, dataset: str) -> Iterator[tuple[str, list[str]]]:
        """Yield (end of the rule name, tars) of the batches of tars that share a job."""
        tars = self.tars(dataset)
        for first in range(0, len(tars), self.shards_per_job):
            number = f"_{first // self.shards_per_job:04d}" if len(tars) > self.shards_per_job else ""
            yield number, tars[first : first + self.shards_per_job]

    def _tar_results(self, dataset: str, tars: list[str]) -> tuple[Path, ...]:
        """Return the results that hold these tars."""
        if isinstance(self.config.datasets[dataset], HubDataset):
            return tuple(self.places.fetched(dataset, tar) for tar in tars)
        return (self.places.shards(dataset),)

    def encoder_id(self, encoder: Encoder) -> str:
        """Return the folder name of an encoder: its name and a digest of the settings that its tokens depend on."""
        name = encoder.name.replace(":", "-").replace("/", "-")
        return f"{name}-{digest_of(self._encoder_values(encoder))[:8]}"

    def weights_id(self, encoder: Encoder) -> str:
        """Return the folder name of an encoder's weights, which serve every precision."""
        name = encoder.name.replace(":", "-").replace("/", "-")
        return f"{name}-{digest_of(self._weights_values(encoder))[:8]}"

    @property
    def source_id(self) -> str:
        """Folder name of the stores of the source encoder that the runs read."""
        identity = self.encoder_id(self.config.encoders.source)
        return converted(identity) if self.config.encoders.source_storage == "int8" else identity

    @property
    def target_id(self) -> str:
        """Folder name of the target encoder."""
        return self.encoder_id(self.config.encoders.target)

    @property
    def _encoders(self) -> list[Encoder]:
        found = {
            self.encoder_id(encoder): encoder
            for encoder in (self.config.encoders.source, self.config.encoders.target)
        }
        return list(found.values())

    def _encoder_values(self, encoder: Encoder) -> dict[str, Any]:
        values: dict[str, Any] = {"encoder": encoder.model_dump()}
        if encoder.name.startswith("demo-"):
            values["encoders"] = {"retrain_demo_towers": self.config.encoders.retrain_demo_towers}
        return values

    def _weights_values(self, encoder: Encoder) -> dict[str, Any]:
        return {**self._encoder_values(encoder), "encoder": {"name": encoder.name}}

    def _weights_of(self, encoder: Encoder) -> Path:
        return self.places.weights(self.weights_id(encoder))

    def _stores(self, dataset: str, encoder_id: str) -> tuple[Path, ...]:
        return tuple(self.places.store(dataset, encoder_id, tar) for tar in self.tars(dataset))

    def _spec(self, stage: str, target: dict[str, str], values: dict[str, Any]) -> Spec:
        return Spec(stage, target, values, self.places, code_of(stage, values))

    def _fetch(self, dataset: str) -> Iterator[Job]:
        described = self.config.datasets[dataset]
        if isinstance(described, HubDataset):
            tars = {tar.file_name: tar for tar in hub_tars(described, self.places)}
            for number, batch in self._batches(dataset):
                # a newer listing may name other bytes under the same name
                listed = digest_of([[name, tars[name].sha256] for name in batch])[:16]
                asked = described.model_dump(include={"kind", "repository", "revision"})
                values = {"datasets": {dataset: {**asked, "tars": listed}}}
                spec = self._spec("fetch", {"dataset": dataset, "tars": ",".join(batch)}, values)
                results = self._tar_results(dataset, batch)
                yield Job(
                    f"fetch_{rule_word(dataset)}{number}",
                    spec,
                    (),
                    results,
                    runtime_minutes=480,
                    is_local=True,
                )
        elif isinstance(described, CocoDataset):
            leave_out = {"images", "images_per_shard", "captions", "instances"}
            values = {"datasets": {dataset: described.model_dump(exclude=leave_out)}}
            spec = self._spec("fetch", {"dataset": dataset}, values)
            yield Job(
                f"fetch_{rule_word(dataset)}", spec, (), (self.places.archives(dataset),), is_local=True
            )

    def _shards(self, dataset: str) -> Job:
        described = self.config.datasets[dataset]
        # where the archives came from makes no difference: their digests are in the manifest
        leave_out = {"pictures", "annotations", "archives", "samples_per_shard"}
        if isinstance(described, FolderDataset):
            leave_out.add("views")  # which members make a sample is for those who read the tars
        values = {"datasets": {dataset: described.model_dump(exclude=leave_out)}}
        spec = self._spec("shards", {"dataset": dataset}, values)
        files: tuple[Path, ...] = ()
        if isinstance(described, FolderDataset):
            files = tuple(Path(described.path) / tar for tar in self.tars(dataset))
        inputs = (self.places.archives(dataset),) if isinstance(described, CocoDataset) else ()
        return Job(f"shards_{rule_word(dataset)}", spec, inputs, (self.places.shards(dataset),), files=files)

    def _weights(self, encoder: Encoder) -> Job:
        spec = self._spec("weights", {"encoder": self.weights_id(encoder)}, self._weights_values(encoder))
        brought = brought_weights(encoder.name)
        return Job(
            f"weights_{rule_word(encoder.name)}",
            spec,
            (),
            (self._weights_of(encoder),),
            files=tuple(weight_files(brought)) if brought is not None and brought.exists() else (),
            memory_mb=4000,
            runtime_minutes=480,
            is_local=True,
        )

    def _encoder_word(self, encoder: Encoder) -> str:
        """Return an encoder's part of a rule name; two with one name are told apart by their settings."""
        is_alone = len({one.name for one in self._encoders}) == len(self._encoders)
        return rule_word(encoder.name if is_alone else self.encoder_id(encoder))

    def _extract(self, dataset: str, encoder: Encoder) -> Iterator[Job]:
        identity, values = self.encoder_id(encoder), self._extraction_values(dataset, encoder)
        for number, batch in self._batches(dataset):
            target = {
                "dataset": dataset,
                "encoder": identity,
                "weights": self.weights_id(encoder),
                "tars": ",".join(batch),
            }
            spec = self._spec("extract", target, values)
            yield Job(
                f"extract_{rule_word(dataset)}_{self._encoder_word(encoder)}{number}",
                spec,
                (*self._tar_results(dataset, batch), self._weights_of(encoder)),
                tuple(self.places.store(dataset, identity, tar) for tar in batch),
                memory_mb=EXTRACT_MEMORY_MB[encoder_family(encoder.name)],
                runtime_minutes=60 + 10 * len(batch),
            )

    def _extraction_values(self, dataset: str, encoder: Encoder) -> dict[str, Any]:
        """What the tokens of a data set depend on."""
        described = self.config.datasets[dataset]
        limit = getattr(described, "samples_per_shard", None)
        shown = {**self._kind_and_views(dataset), "samples_per_shard": limit}
        return {
            "encoder": encoder.model_dump(),
            "encoders": self.config.encoders.model_dump(include={"batch_size", "decode", "compile"}),
            "datasets": {dataset: shown},
        }

    def _kind_and_views(self, dataset: str) -> dict[str, Any]:
        """How the tars of a data set are found and read."""
        described = self.config.datasets[dataset]
        return {"kind": described.kind, "views": described.views}

    def _convert(self, dataset: str) -> Iterator[Job]:
        identity = self.encoder_id(self.config.encoders.source)
        for number, batch in self._batches(dataset):
            target = {"dataset": dataset, "encoder": identity, "tars": ",".join(batch)}
            yield Job(
                f"convert_{rule_word(dataset)}{number}",
                self._spec("convert", target, {}),
                tuple(self.places.store(dataset, identity, tar) for tar in batch),
                tuple(self.places.store(dataset, converted(identity), tar) for tar in batch),
                runtime_minutes=60 + 10 * len(batch),
            )

    def _pairs(self, dataset: str) -> Job:
        target = {"dataset": dataset, "source": self.source_id, "target": self.target_id}
        inputs = (*self._stores(dataset, self.source_id), *self._stores(dataset, self.target_id))
        names = {role: {"name": getattr(self.config.encoders, role).name} for role in ("source", "target")}
        spec = self._spec("pairs", {**target, "tars": ",".join(self.tars(dataset))}, {"encoders": names})
        return Job(f"pairs_{rule_word(dataset)}", spec, inputs, (self._pairs_folder(dataset),))

    def _pairs_folder(self, dataset: str) -> Path:
        return self.places.pairs(dataset, self.source_id, self.target_id)

    def _head(self) -> Job:
        encoder = self.config.encoders.target
        target = {"encoder": self.target_id, "weights": self.weights_id(encoder)}
        spec = self._spec("head", target, {"encoder": {"name": encoder.name}})
        inputs = (self._weights_of(encoder),)
        return Job(f"head_{rule_word(encoder.name)}", spec, inputs, (self.places.head(self.target_id),))

    def _class_values(self, dataset: str) -> dict[str, Any]:
        """What decides which classes a data set has; which file names them does not."""
        described = self.config.datasets[dataset]
        if isinstance(described, CocoDataset):
            return {"kind": described.kind, "has_instances": described.instances is not None}
        return {"kind": described.kind}

    def _texts(self) -> Job:
        dataset, encoder = self.config.data.evaluation, self.config.encoders.target
        values = {
            "encoder": encoder.model_dump(),
            "datasets": {dataset: self._class_values(dataset)},
        }
        target = {
            "dataset": dataset,
            "encoder": self.target_id,
            "weights": self.weights_id(encoder),
            "tars": ",".join(self.tars(dataset)),
        }
        inputs = (self._weights_of(encoder), *self._stores(dataset, self.target_id))
        folder = self.places.texts(dataset, self.target_id)
        return Job(
            f"texts_{rule_word(dataset)}",
            self._spec("texts", target, values),
            inputs,
            (folder,),
            memory_mb=4000,
        )
