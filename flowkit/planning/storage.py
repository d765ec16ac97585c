"""What an experiment will have stored, by place: what lies there and what is to come.

Left out because it is small: heads, text embeddings, metrics of evaluations, pages, logs. Bytes are those of the files,
not of the blocks that a file system gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flowkit.datasets import CocoDataset, DemoDataset, FolderDataset, HubDataset, SolidsDataset
from flowkit.encoders.token_shapes import EncoderShape
from flowkit.encoders.weight_registry import brought_weights, weight_files
from flowkit.export.consumers import consumer_named
from flowkit.paths import LOCATION, MANIFEST
from flowkit.planning.data_facts import DataFacts
from flowkit.planning.pending import BATCHED, State, has_manifest, is_current
from flowkit.planning.sizes import (
    RESULT,
    Amount,
    NetworkSize,
    checkpoint_size,
    export_size,
    network_size,
    pairs_size,
    samples_size,
    store_size,
    trained_size,
    unrounded_size,
    weights_size,
)
from flowkit.provenance import read_json
from flowkit.sections import UNROUNDED
from flowkit.stages.jobs import Job
from flowkit.stages.session import KEPT_GENERATIONS

DATA_ROOT, RESULTS = "data_root", "results"
KEPT_CHECKPOINTS = 2
"""As flowkit.training.checkpoint keeps them; a third one is there while it is written."""


@dataclass(frozen=True)
class Stored:
    """One kind of thing in one place. `to_come` is None where nobody can tell its size yet."""

    place: str
    what: str
    done: Amount
    to_come: Amount | None
    is_estimate: bool = False

    @property
    def total(self) -> Amount:
        """Everything that is known of."""
        return self.done + (self.to_come or Amount())


@dataclass(frozen=True)
class _Result:
    """The result of one job in one folder; `size` is None where it is unknown."""

    place: str
    what: str
    folder: Path
    size: Amount | None
    is_estimate: bool = False


@dataclass(frozen=True)
class Storage:
    """The storage of a plan; `states` says which of its jobs run."""

    data: DataFacts
    states: Mapping[str, State]

    def rows(self) -> list[Stored]:
        """Return a line per kind of thing: below `data_root` first, then the results."""
        lines: dict[tuple[str, str], Stored] = {}
        outdated = Amount()
        for job in self.data.plan.jobs.values():
            for result in self._results(job):
                here, to_come, is_outdated = self._split(job, result)
                key = result.place, result.what
                line = lines.get(key, Stored(*key, Amount(), Amount()))
                known = line.to_come is not None and to_come is not None
                lines[key] = replace(
                    line,
                    done=line.done + here,
                    to_come=(line.to_come or Amount()) + (to_come or Amount()) if known else None,
                    is_estimate=line.is_estimate or (result.is_estimate and to_come != Amount()),
                )
                if is_outdated and result.place == RESULTS:
                    outdated += here
        kept = Amount()
        for line in lines.values():
            kept += line.total.times(KEPT_GENERATIONS - 1) if line.place == RESULTS else Amount()
        lines[RESULTS, "checkpoints"] = self._checkpoints()
        what = "the generation before, kept after a change"
        lines[RESULTS, what] = Stored(RESULTS, what, Amount(), kept - outdated - outdated)
        return sorted(lines.values(), key=lambda line: line.place)

    def _split(self, job: Job, result: _Result) -> tuple[Amount, Amount | None, bool]:
        """Return what lies there, what is to come, and whether what lies there is of other values."""
        runs, exists = self.states[job.name] is State.TO_RUN, has_manifest(result.folder)
        is_kept = exists and is_current(job, result.folder) and (not runs or job.spec.stage in BATCHED)
        here = (self._here(result) or Amount()) if exists else Amount()
        to_come = result.size if runs and not is_kept else Amount()
        return here, to_come, exists and not is_kept

    def _here(self, result: _Result) -> Amount | None:
        """Return the size of a committed result: computed as for one to come, unless its content is gone."""
        content = result.folder / read_json(result.folder / MANIFEST)["content"]
        return result.size if content.is_dir() else RESULT

    def _results(self, job: Job) -> Iterator[_Result]:
        make = {
            "fetch": self._fetched,
            "shards": self._shards,
            "weights": self._weights,
            "extract": self._stores,
            "convert": self._stores,
            "pairs": self._pairs,
            "train": self._trained,
            "sample": self._samples,
            "baselines": self._samples,
            "ceilings": self._samples,
            "export": self._exports,
        }.get(job.spec.stage)
        if make is not None:
            yield from make(job)

    def _fetched(self, job: Job) -> Iterator[_Result]:
        dataset = job.spec.target["dataset"]
        described = self.data.plan.config.datasets[dataset]
        if isinstance(described, HubDataset):
            sizes = {tar.name: tar.bytes for tar in self.data.tars(dataset)}
            for name, folder in zip(job.spec.target["tars"].split(","), job.folders, strict=True):
                yield _Result(DATA_ROOT, f"tars of {dataset}", folder, RESULT + Amount(sizes[name], 1))
        elif isinstance(described, CocoDataset):
            size = Amount(described.pictures.bytes + described.annotations.bytes, 2)
            yield _Result(DATA_ROOT, f"archives of {dataset}", job.folders[0], RESULT + size)

    def _shards(self, job: Job) -> Iterator[_Result]:
        dataset = job.spec.target["dataset"]
        described, tars = self.data.plan.config.datasets[dataset], self.data.tars(dataset)
        if isinstance(described, FolderDataset):  # the tars stay where the user has them
            yield _Result(DATA_ROOT, f"list of the tars of {dataset}", job.folders[0], RESULT + Amount(0, 1))
            return
        size = RESULT + Amount(sum(tar.bytes for tar in tars), len(tars) + 1)
        is_estimate = not isinstance(described, DemoDataset | SolidsDataset)
        yield _Result(DATA_ROOT, f"tars of {dataset}", job.folders[0], size, is_estimate)

    def _weights(self, job: Job) -> Iterator[_Result]:
        name, folder = job.spec.values["encoder"]["name"], job.folders[0]
        if has_manifest(folder):
            content = folder / read_json(folder / MANIFEST)["content"]
            path = content / read_json(content / LOCATION)["path"] if content.is_dir() else content
            is_here = path.is_relative_to(content) and path.exists()
            files = [file.stat().st_size for file in weight_files(path)] if is_here else []
        elif brought_weights(name) is None:
            encoders = self.data.plan.config.encoders
            encoder = encoders.source if encoders.source.name == name else encoders.target
            files = [self.data.shape(encoder).weight_bytes]
        else:
            files = []
        size = RESULT + Amount(sum(files), 1 + len(files))
        is_estimate = not name.startswith("demo-")
        yield _Result(DATA_ROOT, f"weights of {name}", folder, size, is_estimate)

    def _stores(self, job: Job) -> Iterator[_Result]:
        dataset, plan = job.spec.target["dataset"], self.data.plan
        storage = "int8" if job.spec.stage == "convert" else "float16"
        encoders = plan.config.encoders
        is_source = plan.encoder_id(encoders.source) == job.spec.target["encoder"]
        encoder = encoders.source if is_source else encoders.target
        tars = {tar.name: tar for tar in self.data.tars(dataset)}
        what = f"tokens of {dataset}, {encoder.name}, {storage}"
        shape = self.data.shape(encoder)
        for name, folder in zip(job.spec.target["tars"].split(","), job.folders, strict=True):
            images = tars[name].images
            size = None if images is None else store_size(shape, images, storage)
            yield _Result(DATA_ROOT, what, folder, size, is_estimate=not tars[name].is_counted)

    def _pairs(self, job: Job) -> Iterator[_Result]:
        dataset = job.spec.target["dataset"]
        images = self.data.images(dataset)
        size = None if images is None else pairs_size(images, len(self.data.tars(dataset)))
        yield _Result(DATA_ROOT, "pairs", job.folders[0], size, self.data.is_estimate(dataset))

    def _trained(self, job: Job) -> Iterator[_Result]:
        data, run = self.data, job.spec.target["run"]
        weights = self._weights_size(run)
        what = "trained weights, at the end and at the best"
        size = trained_size(weights, training_steps(data, run) or 0)
        yield _Result(RESULTS, what, job.folders[0], size)

    def _samples(self, job: Job) -> Iterator[_Result]:
        config, further = self.data.plan.config, 0
        views = config.datasets[config.data.evaluation].views
        images, shape = config.evaluation.images, self.data.as_sample(self.data.target, views)
        stores = [images]
        run = job.spec.target.get("run")
        if run is not None and config.run(run).objective.kind != "regression":
            sampling = config.run(run).sampling
            spread = [name for name in sampling.samplers if has_spread(name)]
            further = sampling.noise_seeds - 1 if spread else 0
            noise_images = min(sampling.noise_images or images, images)
            stores = [images] * len(sampling.samplers) + [noise_images] * (len(spread) * further)
        unrounded = self.data.plan.places.samples(UNROUNDED, config.data.evaluation)
        for folder in job.folders:
            if folder == unrounded:
                size = unrounded_size(shape.tokens, shape.width, images)
            else:
                size = samples_size(shape.tokens, shape.width, stores, further)
            yield _Result(RESULTS, "samples of runs and baselines", folder, size)

    def _exports(self, job: Job) -> Iterator[_Result]:
        settings, shape, config = job.spec.values["export"], self.data.target, self.data.plan.config
        rows = job.spec.values["evaluation"]["images"] * config.datasets[config.data.evaluation].views
        of_form = {"pooled": shape.pooled_width}
        forms = [consumer_named(name).form for name in settings["consumers"]]
        # a row of every form but the pooled one holds all patches
        numbers = {form: of_form.get(form, (shape.tokens - 1) * shape.width) for form in forms}
        size = RESULT
        for _ in settings.get("samplers") or ("the first",):
            size += export_size(list(numbers.values()), len(forms), rows)
        yield _Result(RESULTS, "exports", job.folders[0], size)

    def _checkpoints(self) -> Stored:
        """What trainings need while they run: the checkpoints, and the best so far, which is copied at the end."""
        data, amount = self.data, Amount()
        for job in data.plan.jobs.values():
            if job.spec.stage == "train" and self.states[job.name] is State.TO_RUN:
                run = job.spec.target["run"]
                optimizer = data.plan.config.run(run).train.optimizer
                checkpoint = checkpoint_size(self._network(run), optimizer)
                amount += checkpoint.times(KEPT_CHECKPOINTS + 1) + self._weights_size(run)
        return Stored(RESULTS, "checkpoints, while trainings run", Amount(), amount)

    def _network(self, run: str) -> NetworkSize:
        model = tuple(self.data.plan.config.run(run).model.model_dump().items())
        return network_size(model, *self._shapes(run), self.data.views(run))

    def _weights_size(self, run: str) -> Amount:
        return weights_size(self._network(run), *self._shapes(run))

    def _shapes(self, run: str) -> tuple[EncoderShape, EncoderShape]:
        data, views = self.data, self.data.views(run)
        return data.as_sample(data.source, views), data.as_sample(data.target, views)


def has_spread(sampler: str) -> bool:
    """Return whether a sampler of a flow is run with every noise seed; loads torch."""
    from flowkit.sampling.sampler import parse_sampler

    return parse_sampler(sampler).has_spread


def training_steps(data: DataFacts, run: str) -> int | None:
    """Return the steps of a training, None if they count epochs over images that nobody has counted yet."""
    config = data.plan.config
    train = config.run(run).train
    if train.epochs is None:
        return train.steps
    images = data.images(config.data.train, slice(0, -config.data.validation_shards))
    if images is None:
        return None
    return max(1, round(train.epochs * (images // data.views(run) // train.batch_size)))
