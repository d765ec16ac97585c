"""From a configuration to jobs: which stages run, what each one sees, reads and leaves.

A job's spec holds exactly the configuration leaves that its stage can see; the same leaves, and the fingerprint of the
code that the stage can import, are what Snakemake tracks. The Snakefile makes one rule per job, and the command line
runs the same jobs without Snakemake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flowkit.datasets import CocoDataset, DemoDataset, SolidsDataset
from flowkit.encoders.weight_registry import encoder_family
from flowkit.errors import ConfigError
from flowkit.provenance import canonical_json
from flowkit.sections import CEILINGS, Model, Objective, Sampling, Train
from flowkit.seeds import BY_VIEW, without_seed
from flowkit.stages.data_jobs import EXTRACT_MEMORY_MB, DataPlan
from flowkit.stages.export_jobs import (
    TRUE,
    consumer_files,
    demand_exportable,
    export_values,
    exported_runs,
    exporting,
)
from flowkit.stages.graph import nodes_of
from flowkit.stages.jobs import Job, rule_word

BESIDE = (
    *(
        "constant",
        "ridge",
        "ridge_ot",
        "ridge_ot_flat",
        "regression",
        f"flow{BY_VIEW}",
        f"regression{BY_VIEW}",
    ),
    "true",
)
"""Runs that stand on the page of every other: as columns, in sentences, as differences image by image."""
DEFAULTS = {"model": Model, "objective": Objective, "train": Train, "sampling": Sampling}
"""Sections that a run overrides."""


@dataclass(frozen=True)
class Plan(DataPlan):
    """All jobs of an experiment."""

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """Jobs by rule name, each after the jobs that it depends on; raises `ConfigError` where names collide."""
        self._check_sizes()
        jobs: dict[str, Job] = {}
        for job in self._jobs_before_report():
            _add(jobs, replace(job, priority=self._priority(job)))
        _add(jobs, self._report(jobs))
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
        if isinstance(evaluation, DemoDataset | SolidsDataset | CocoDataset):
            there_are, what = (
                evaluation.images // evaluation.views,
                "objects" if evaluation.views > 1 else "images",
            )
            if images > there_are:
                raise ConfigError(f"evaluation.images={images}: the evaluation set has {there_are} {what}")
        demand_exportable(self.config)

    def _priority(self, job: Job) -> int:
        """Return how early a job should start among those that could: the longest way to the end goes first.

        What training waits for, then runs that are sampled with many evaluations, then regressions, then the rest.
        """
        target = job.spec.target
        if target.get("dataset", self.config.data.train) == self.config.data.train and "run" not in target:
            return 30
        if (run := target.get("run")) is None or job.spec.stage == "export":
            return 0
        return 10 if self.config.run(run).objective.kind == "regression" else 20

    def select(self, stage: str, **target: str | None) -> list[Job]:
        """Return the jobs of a stage whose target has the given values; raises `ConfigError` if there is none.

        `run` also finds the job that serves several runs or baselines at once; where export.runs is null, it names the
        run or baseline that is exported.
        """
        wanted = {key: value for key, value in target.items() if value is not None}
        if stage == "export" and (run := wanted.get("run")) is not None and self.config.export.runs is None:
            return replace(self, config=exporting(self.config, run)).select(stage, **target)
        of_stage = [job for job in self.jobs.values() if job.spec.stage == stage]
        if stage == "export" and not of_stage:
            raise ConfigError(
                "export: export.consumers and export.runs name nothing to write; add for instance "
                "--set 'export.consumers=[point-e]' --to FOLDER"
            )
        found = [job for job in of_stage if all(_serves(job, key, value) for key, value in wanted.items())]
        if not found:
            if stage == "export":
                raise ConfigError(
                    f"export: no job for {wanted}, export.runs names {', '.join(exported_runs(self.config))}; add "
                    f"--set 'export.runs=[{wanted.get('run', 'RUN')}]' --to FOLDER"
                )
            known = ", ".join(sorted(job.name for job in of_stage))
            raise ConfigError(f"{stage}: no job for {wanted}, this experiment has {known}")
        return found

    def _jobs_before_report(self) -> Iterator[Job]:
        yield from self.data_jobs()
        for run in self.config.runs:
            yield self._train(run)
            yield self._sample(run)
            yield self._evaluate(run, (run,))
        ceilings = [name for name in self.config.baselines if name in CEILINGS]
        closed_forms = [name for name in self.config.baselines if name not in CEILINGS]
        if closed_forms:
            yield self._baselines(closed_forms)
        if ceilings:
            yield self._ceilings(ceilings)
        if self.config.baselines:
            yield self._evaluate("baselines", self.config.baselines)
        for run in exported_runs(self.config):
            yield self._export(run)
        yield self._survey()
        yield self._summary()
        yield from self._pages()

    @property
    def all_runs(self) -> list[str]:
        """Trained runs and baselines."""
        return [*self.config.runs, *self.config.baselines]

    def _pair_target(self, dataset: str) -> dict[str, str]:
        return {"dataset": dataset, "source": self.source_id, "target": self.target_id}

    def _train(self, run: str) -> Job:
        sections = self.config.run(run)
        values = {
            "model": sections.model.model_dump(),
            "objective": sections.objective.model_dump(),
            "train": sections.train.model_dump(),
            "data": self.config.data.model_dump(
                include={"layout", "source_tokens", "validation_shards", "shuffle"}
            ),
            "encoders": self.config.encoders.model_dump(include={"source", "target"}),
        }
        spec = self._spec("train", {"run": run, **self._pair_target(self.config.data.train)}, values)
        inputs: tuple[Path, ...] = (self._pairs_folder(self.config.data.train),)
        if sections.objective.feature_scale == "target_norm":
            inputs += (self.places.head(self.target_id),)
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
            "data": self.config.data.model_dump(include={"layout", "source_tokens"}),
            "objective": sections.objective.model_dump(include={"kind", "clock"}),
            "model": sections.model.model_dump(include={"architecture", "head"}),
        }
        dataset = self.config.data.evaluation
        spec = self._spec("sample", {"run": run, **self._pair_target(dataset)}, values)
        inputs = (self.places.train(run), self._pairs_folder(dataset))
        return Job(
            f"sample_{rule_word(run)}", spec, inputs, (self.places.samples(run, dataset),), memory_mb=4000
        )

    def _baselines(self, names: Sequence[str]) -> Job:
        values = {
            "evaluation": {"images": self.config.evaluation.images},
            "closed_forms": self.config.closed_forms.model_dump(),
            "data": self.config.data.model_dump(include={"layout", "source_tokens", "validation_shards"}),
        }
        train, dataset = self.config.data.train, self.config.data.evaluation
        target = {"baselines": ",".join(names), "train": train, **self._pair_target(dataset)}
        inputs = (self._pairs_folder(train), self._pairs_folder(dataset))
        folders = tuple(self.places.samples(baseline, dataset) for baseline in names)
        return Job(
            "baselines",
            self._spec("baselines", target, values),
            inputs,
            folders,
            memory_mb=6000,
            runtime_minutes=240,
        )

    def _ceilings(self, names: Sequence[str]) -> Job:
        dataset, encoder = self.config.data.evaluation, self.config.encoders.target
        values = {
            **self._extraction_values(dataset, encoder),
            "evaluation": {"images": self.config.evaluation.images},
            "data": {"layout": self.config.data.layout},
        }
        target = {
            "ceilings": ",".join(names),
            "weights": self.weights_id(encoder),
            **self._pair_target(dataset),
        }
        tars = self.tars(dataset)
        return Job(
            "ceilings",
            self._spec("ceilings", target, values),
            (self._pairs_folder(dataset), *self._tar_results(dataset, tars), self._weights_of(encoder)),
            tuple(self.places.samples(name, dataset) for name in names),
            memory_mb=EXTRACT_MEMORY_MB[encoder_family(encoder.name)],
            runtime_minutes=60 + 10 * len(tars) * len(names),
        )

    def _evaluate(self, name: str, runs: tuple[str, ...]) -> Job:
        train, dataset = self.config.data.train, self.config.data.evaluation
        values = {
            "evaluation": self.config.evaluation.model_dump(),
            "closed_forms": self.config.closed_forms.model_dump(include={"images"}),
            "datasets": {dataset: self._class_values(dataset)},
            "data": self.config.data.model_dump(include={"layout", "source_tokens", "validation_shards"}),
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
        return Job(
            f"evaluate_{rule_word(name)}",
            spec,
            inputs,
            folders,
            consumer_files(self.config),
            memory_mb=6000,
            runtime_minutes=240,
        )

    def _export(self, run: str) -> Job:
        dataset = self.config.data.evaluation
        inputs = [self._pairs_folder(dataset), self.places.head(self.target_id)]
        if run != TRUE:
            inputs.append(self.places.samples(run, dataset))
        target = {"run": run, **self._pair_target(dataset)}
        spec = self._spec("export", target, export_values(self.config, run))
        return Job(f"export_{rule_word(run)}", spec, tuple(inputs), (self.places.export(run),))

    def _survey(self) -> Job:
        train, dataset = self.config.data.train, self.config.data.evaluation
        values = {
            "data": self.config.data.model_dump(include={"layout", "validation_shards"}),
            "evaluation": {"images": self.config.evaluation.images},
            "datasets": {name: self._kind_and_views(name) for name in self.datasets},
        }
        # tars are no input: to fetch terabytes again for a few thumbnails would be a bad bargain
        inputs = tuple(self._pairs_folder(name) for name in self.datasets)
        spec = self._spec("survey", {"train": train, **self._pair_target(dataset)}, values)
        return Job("survey", spec, inputs, (self.places.survey,), memory_mb=4000, runtime_minutes=240)

    def _summary(self) -> Job:
        values = {"goals": self.config.goals.model_dump(), "runs": self.all_runs}
        target = {"runs": ",".join(self.all_runs), "dataset": self.config.data.evaluation}
        inputs = tuple(self.places.evaluation(run) for run in self.all_runs)
        spec = self._spec("summary", target, values)
        return Job("summary", spec, inputs, (self.places.summary,), is_local=True)

    def _page(self, name: str, runs: Sequence[str], beside: Sequence[str], seeds: Sequence[str]) -> Job:
        """Return the job of the pages of some runs that stand beside the same others."""
        dataset = self.config.data.evaluation
        trained = [run for run in runs if run in self.config.runs]
        values = {
            "report": self.config.report.model_dump(),
            "questions": {run: asked for run in trained if (asked := self.config.question(run))},
            "defaults": {key: section().model_dump(mode="json") for key, section in DEFAULTS.items()},
            "datasets": {dataset: {"kind": self.config.datasets[dataset].kind}},
        }
        target = {
            "runs": ",".join(runs),
            "kind": "trained" if trained else "closed form",
            "beside": ",".join(beside),
            "seeds": ",".join(seeds),
            **self._pair_target(dataset),
        }
        read = dict.fromkeys((*runs, *beside, *seeds))
        inputs = (
            *(self.places.evaluation(run) for run in read),
            *(self.places.train(run) for run in trained),
            *self._tar_results(dataset, self.tars(dataset)),
            self._pairs_folder(dataset),
        )
        folders = tuple(self.places.page(run) for run in runs)
        spec = self._spec("page", target, values)
        return Job(f"page_{rule_word(name)}", spec, inputs, folders, is_local=True)

    def _pages(self) -> Iterator[Job]:
        beside = [run for run in BESIDE if run in self.all_runs]
        for run in self.config.runs:
            yield self._page(run, (run,), [other for other in beside if other != run], self._seeds(run))
        if self.config.baselines:
            closed = [run for run in beside if run in self.config.baselines]
            yield self._page("baselines", self.config.baselines, closed, ())

    def _seeds(self, run: str) -> list[str]:
        """Return the runs that are the same training with other seeds: by name, and by all other settings."""

        def settings(name: str) -> dict[str, Any]:
            found = self.config.run(name).model_dump(mode="json")
            return {**found, "train": {**found["train"], "seed": None}}

        family = [other for other in self.config.runs if without_seed(other) == without_seed(run)]
        return [other for other in family if other != run and settings(other) == settings(run)]

    def _report(self, jobs: Mapping[str, Job]) -> Job:
        """Return the job of the report, which draws all others with their times."""
        dataset = self.config.data.evaluation
        values = {
            "report": {"title": self.config.report.title},
            "runs": self.all_runs,
            "made_by": {
                name: "ceilings" if name in CEILINGS else "baselines" for name in self.config.baselines
            },
            "defaults": {name: section().model_dump(mode="json") for name, section in DEFAULTS.items()},
        }
        target = {
            "runs": ",".join(self.all_runs),
            "trained": ",".join(self.config.runs),
            "train": self.config.data.train,
            "workflow": canonical_json(nodes_of(jobs, self.places)),
            **self._pair_target(dataset),
        }
        inputs = (self.places.summary, self.places.survey, *(self.places.page(run) for run in self.all_runs))
        return Job("report", self._spec("report", target, values), inputs, (self.places.site,), is_local=True)


def _add(jobs: dict[str, Job], job: Job) -> None:
    if job.name in jobs:
        raise ConfigError(
            f"two rules would be called {job.name}, rename the run, data set or encoder behind it"
        )
    jobs[job.name] = job


def _serves(job: Job, key: str, value: str) -> bool:
    named = job.spec.target.get(key)
    if named is None and key == "run":
        target = job.spec.target
        named = target.get("runs") or target.get("baselines") or target.get("ceilings")
    return named is not None and value in named.split(",")
