"""From a configuration to jobs: which stages run, what each one sees, reads and leaves.

A job's spec holds exactly the configuration leaves that its stage can see; the same leaves, and the fingerprint of the
code that the stage can import, are what Snakemake tracks. The Snakefile makes one rule per job, and the command line
runs the same jobs without Snakemake.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flowkit.config import Config, Encoder
from flowkit.datasets import CocoDataset, DemoDataset, FolderDataset, HubDataset
from flowkit.errors import ConfigError
from flowkit.paths import Places, converted
from flowkit.provenance import digest_of
from flowkit.stages.datasets import tar_names
from flowkit.stages.fingerprint import code_of
from flowkit.stages.jobs import Job, rule_word
from flowkit.stages.session import Spec


@dataclass(frozen=True)
class Plan:
    """All jobs of an experiment. `shards_per_job` tars share one extraction job; it changes no result."""

    config: Config
    places: Places
    shards_per_job: int = 32

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """Jobs by rule name, each after the jobs that it depends on; raises `ConfigError` where names collide."""
        self._check_sizes()
        jobs: dict[str, Job] = {}
        for job in self._all_jobs():
            if job.name in jobs:
                raise ConfigError(
                    f"two rules would be called {job.name}, rename the run, data set or encoder behind it"
                )
            jobs[job.name] = replace(job, priority=self._priority(job))
        return jobs

    def _check_sizes(self) -> None:
        """Find out before anything runs what could only fail after hours."""
        train, evaluation = self.config.data.train, self.config.datasets[self.config.data.evaluation]
        tars, held_out = len(self.tars(train)), self.config.data.validation_shards
        if held_out >= tars:
            raise ConfigError(
                f"data.validation_shards={held_out}: {train} has {tars} tars, leave some for training"
            )
        images = self.config.evaluation.images
        if isinstance(evaluation, DemoDataset | CocoDataset) and images > evaluation.images:
            raise ConfigError(
                f"evaluation.images={images}: the evaluation set has {evaluation.images} images"
            )

    def _priority(self, job: Job) -> int:
        """Return how early a job should start among those that could: the longest way to the end goes first.

        What training waits for, then runs that are sampled with many evaluations, then regressions, then the rest.
        """
        target = job.spec.target
        if target.get("dataset", self.config.data.train) == self.config.data.train and "run" not in target:
            return 30
        if (run := target.get("run")) is None:
            return 0
        return 10 if self.config.run(run).objective.kind == "regression" else 20

    def select(self, stage: str, **target: str | None) -> list[Job]:
        """Return the jobs of a stage whose target has the given values; raises `ConfigError` if there is none.

        `run` also finds the job that serves several runs or baselines at once.
        """
        wanted = {key: value for key, value in target.items() if value is not None}
        of_stage = [job for job in self.jobs.values() if job.spec.stage == stage]
        found = [job for job in of_stage if all(_serves(job, key, value) for key, value in wanted.items())]
        if not found:
            known = ", ".join(sorted(job.name for job in of_stage))
            raise ConfigError(f"{stage}: no job for {wanted}, this experiment has {known}")
        return found

    def _all_jobs(self) -> Iterator[Job]:
        for dataset in self.datasets:
            yield from self._fetch(dataset)
            if not isinstance(self.config.datasets[dataset], HubDataset):
                yield self._shards(dataset)
        for encoder in self._encoders:
            yield self._weights(encoder)
        for dataset in self.datasets:
            for encoder in self._encoders:
                yield from self._extract(dataset, encoder)
            if self.config.encoders.source_storage == "int8":
                yield from self._convert(dataset)
            yield self._pairs(dataset)
        yield self._head()
        yield self._texts()
        for run in self.config.runs:
            yield self._train(run)
            yield self._sample(run)
            yield self._evaluate(run, (run,))
        if self.config.baselines:
            yield self._baselines()
            yield self._evaluate("baselines", self.config.baselines)
        yield self._summary()
        yield self._report()

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets that play a part."""
        return list(dict.fromkeys((self.config.data.train, self.config.data.evaluation)))

    @property
    def all_runs(self) -> list[str]:
        """Trained runs and baselines."""
        return [*self.config.runs, *self.config.baselines]

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

    def _stores(self, dataset: str, encoder_id: str) -> tuple[Path, ...]:
        return tuple(self.places.store(dataset, encoder_id, tar) for tar in self.tars(dataset))

    def _spec(self, stage: str, target: dict[str, str], values: dict[str, Any]) -> Spec:
        return Spec(stage, target, values, self.places, code_of(stage, values))

    def _fetch(self, dataset: str) -> Iterator[Job]:
        described = self.config.datasets[dataset]
        if isinstance(described, HubDataset):
            values = {"datasets": {dataset: described.model_dump(include={"kind", "repository", "revision"})}}
            for number, batch in self._batches(dataset):
                spec = self._spec("fetch", {"dataset": dataset, "tars": ",".join(batch)}, values)
                results = self._tar_results(dataset, batch)
                yield Job(f"fetch_{rule_word(dataset)}{number}", spec, (), results, runtime_minutes=480)
        elif isinstance(described, CocoDataset):
            leave_out = {"images", "images_per_shard", "captions"}
            values = {"datasets": {dataset: described.model_dump(exclude=leave_out)}}
            spec = self._spec("fetch", {"dataset": dataset}, values)
            yield Job(f"fetch_{rule_word(dataset)}", spec, (), (self.places.archives(dataset),))

    def _shards(self, dataset: str) -> Job:
        described = self.config.datasets[dataset]
        # where the archives came from makes no difference: their digests are in the manifest
        values = {
            "datasets": {
                dataset: described.model_dump(
                    exclude={"pictures", "annotations", "archives", "samples_per_shard"}
                )
            }
        }
        spec = self._spec("shards", {"dataset": dataset}, values)
        files: tuple[Path, ...] = ()
        if isinstance(described, FolderDataset):
            files = tuple(Path(described.path) / tar for tar in self.tars(dataset))
        inputs = (self.places.archives(dataset),) if isinstance(described, CocoDataset) else ()
        return Job(f"shards_{rule_word(dataset)}", spec, inputs, (self.places.shards(dataset),), files=files)

    def _weights(self, encoder: Encoder) -> Job:
        values = self._encoder_values(encoder)
        values["encoder"].pop("precision")
        identity = self.encoder_id(encoder)
        spec = self._spec("weights", {"encoder": identity}, values)
        file = Path(
            encoder.name.partition("/")[2]
        )  # a folder of files is not declared, its digest is in the key
        return Job(
            f"weights_{self._encoder_word(encoder)}",
            spec,
            (),
            (self.places.weights(identity),),
            files=(file,) if file.is_file() else (),
            memory_mb=4000,
        )

    def _encoder_word(self, encoder: Encoder) -> str:
        """Return an encoder's part of a rule name; two with one name are told apart by their settings."""
        is_alone = len({one.name for one in self._encoders}) == len(self._encoders)
        return rule_word(encoder.name if is_alone else self.encoder_id(encoder))

    def _extract(self, dataset: str, encoder: Encoder) -> Iterator[Job]:
        identity, described = self.encoder_id(encoder), self.config.datasets[dataset]
        limit = getattr(described, "samples_per_shard", None)
        values = {
            "encoder": encoder.model_dump(),
            "encoders": self.config.encoders.model_dump(include={"batch_size", "decode", "compile"}),
            "datasets": {dataset: {"kind": described.kind, "samples_per_shard": limit}},
        }
        for number, batch in self._batches(dataset):
            spec = self._spec(
                "extract", {"dataset": dataset, "encoder": identity, "tars": ",".join(batch)}, values
            )
            yield Job(
                f"extract_{rule_word(dataset)}_{self._encoder_word(encoder)}{number}",
                spec,
                (*self._tar_results(dataset, batch), self.places.weights(identity)),
                tuple(self.places.store(dataset, identity, tar) for tar in batch),
                memory_mb=4000,
            )

    def _convert(self, dataset: str) -> Iterator[Job]:
        identity = self.encoder_id(self.config.encoders.source)
        for number, batch in self._batches(dataset):
            target = {"dataset": dataset, "encoder": identity, "tars": ",".join(batch)}
            yield Job(
                f"convert_{rule_word(dataset)}{number}",
                self._spec("convert", target, {}),
                tuple(self.places.store(dataset, identity, tar) for tar in batch),
                tuple(self.places.store(dataset, converted(identity), tar) for tar in batch),
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
        spec = self._spec("head", {"encoder": self.target_id}, {"encoder": {"name": encoder.name}})
        inputs = (self.places.weights(self.target_id),)
        return Job(f"head_{rule_word(encoder.name)}", spec, inputs, (self.places.head(self.target_id),))

    def _texts(self) -> Job:
        dataset, encoder = self.config.data.evaluation, self.config.encoders.target
        values = {
            "encoder": encoder.model_dump(),
            "datasets": {dataset: {"kind": self.config.datasets[dataset].kind}},
        }
        target = {"dataset": dataset, "encoder": self.target_id, "tars": ",".join(self.tars(dataset))}
        inputs = (self.places.weights(self.target_id), *self._stores(dataset, self.target_id))
        folder = self.places.texts(dataset, self.target_id)
        return Job(
            f"texts_{rule_word(dataset)}",
            self._spec("texts", target, values),
            inputs,
            (folder,),
            memory_mb=4000,
        )

    def _pair_target(self, dataset: str) -> dict[str, str]:
        return {"dataset": dataset, "source": self.source_id, "target": self.target_id}

    def _train(self, run: str) -> Job:
        sections = self.config.run(run)
        values = {
            "model": sections.model.model_dump(),
            "objective": sections.objective.model_dump(),
            "train": sections.train.model_dump(),
            "data": self.config.data.model_dump(include={"layout", "validation_shards", "shuffle"}),
            "encoders": self.config.encoders.model_dump(include={"source", "target"}),
        }
        spec = self._spec("train", {"run": run, **self._pair_target(self.config.data.train)}, values)
        inputs = (self._pairs_folder(self.config.data.train),)
        return Job(
            f"train_{rule_word(run)}",
            spec,
            inputs,
            (self.places.train(run),),
            memory_mb=8000,
            runtime_minutes=600,
        )

    def _sample(self, run: str) -> Job:
        sections = self.config.run(run)
        values = {
            "sampling": sections.sampling.model_dump(mode="json"),
            "evaluation": {"images": self.config.evaluation.images},
            "data": {"layout": self.config.data.layout},
            "objective": sections.objective.model_dump(include={"kind", "clock"}),
            "model": sections.model.model_dump(include={"head"}),
        }
        dataset = self.config.data.evaluation
        spec = self._spec("sample", {"run": run, **self._pair_target(dataset)}, values)
        inputs = (self.places.train(run), self._pairs_folder(dataset))
        return Job(
            f"sample_{rule_word(run)}", spec, inputs, (self.places.samples(run, dataset),), memory_mb=4000
        )

    def _baselines(self) -> Job:
        values = {
            "evaluation": {"images": self.config.evaluation.images},
            "data": self.config.data.model_dump(include={"layout", "validation_shards"}),
        }
        train, dataset = self.config.data.train, self.config.data.evaluation
        target = {"baselines": ",".join(self.config.baselines), "train": train, **self._pair_target(dataset)}
        inputs = (self._pairs_folder(train), self._pairs_folder(dataset))
        folders = tuple(self.places.samples(baseline, dataset) for baseline in self.config.baselines)
        return Job("baselines", self._spec("baselines", target, values), inputs, folders, memory_mb=6000)

    def _evaluate(self, name: str, runs: tuple[str, ...]) -> Job:
        train, dataset = self.config.data.train, self.config.data.evaluation
        values = {
            "evaluation": self.config.evaluation.model_dump(),
            "data": self.config.data.model_dump(include={"layout", "validation_shards"}),
        }
        target = {"runs": ",".join(runs), "train": train, **self._pair_target(dataset)}
        inputs = (
            *(self.places.samples(run, dataset) for run in runs),
            self._pairs_folder(train),
            self._pairs_folder(dataset),
            self.places.head(self.target_id),
            self.places.texts(dataset, self.target_id),
        )
        folders = tuple(self.places.evaluation(run) for run in runs)
        spec = self._spec("evaluate", target, values)
        return Job(f"evaluate_{rule_word(name)}", spec, inputs, folders, memory_mb=4000)

    def _summary(self) -> Job:
        values = {"goals": self.config.goals.model_dump(), "runs": self.all_runs}
        target = {"runs": ",".join(self.all_runs), "dataset": self.config.data.evaluation}
        inputs = tuple(self.places.evaluation(run) for run in self.all_runs)
        return Job("summary", self._spec("summary", target, values), inputs, (self.places.summary,))

    def _report(self) -> Job:
        dataset = self.config.data.evaluation
        values = {
            "report": self.config.report.model_dump(),
            "runs": self.all_runs,
            "datasets": {dataset: {"kind": self.config.datasets[dataset].kind}},
        }
        target = {
            "runs": ",".join(self.all_runs),
            "trained": ",".join(self.config.runs),
            **self._pair_target(dataset),
        }
        inputs = (
            self.places.summary,
            *(self.places.evaluation(run) for run in self.all_runs),
            *(self.places.train(run) for run in self.config.runs),
            *self._tar_results(dataset, self.tars(dataset)),
            self._pairs_folder(dataset),
        )
        return Job("report", self._spec("report", target, values), inputs, (self.places.site,))


def _serves(job: Job, key: str, value: str) -> bool:
    named = job.spec.target.get(key)
    if named is None and key == "run":
        named = job.spec.target.get("runs") or job.spec.target.get("baselines")
    return named is not None and value in named.split(",")
