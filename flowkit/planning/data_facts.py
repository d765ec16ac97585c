"""What is known of the data of a plan before it is there: images and bytes of every tar, shapes of the tokens.

Drawn and COCO images are counted by the configuration. Of other tars, finished token stores tell how many samples they
have, and these tell, by bytes, about how many the others have; before the first one is finished the only bound is
`samples_per_shard`. Each view of an object counts as an image of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flowkit.datasets import CocoDataset, DemoDataset, FolderDataset, SolidsDataset
from flowkit.encoders.token_shapes import EncoderShape, encoder_shape
from flowkit.features.metadata import DOCUMENT, POOLED, TOKENS
from flowkit.paths import MANIFEST
from flowkit.planning.pending import has_manifest
from flowkit.planning.sizes import demo_tar_bytes, solids_tar_bytes
from flowkit.provenance import read_json
from flowkit.sections import Encoder
from flowkit.stages.datasets import folder_tars, hub_tars
from flowkit.stages.specs import Plan


@dataclass(frozen=True)
class TarFacts:
    """A tar: its bytes, its images (None: nobody knows yet), and whether they were counted or are an estimate."""

    name: str
    bytes: int
    images: int | None
    is_counted: bool


@dataclass(frozen=True)
class DataFacts:
    """The data of a plan. Raises `ShardError`, `EncoderError` or `StageError` where it cannot be told."""

    plan: Plan

    def tars(self, dataset: str) -> list[TarFacts]:
        """Return the tars of a data set in their order."""
        if dataset not in self._tars:
            self._tars[dataset] = self._find_tars(dataset)
        return self._tars[dataset]

    def images(self, dataset: str, part: slice = slice(None)) -> int | None:
        """Return the images of some tars together, None if one of them is unknown."""
        counts = [tar.images for tar in self.tars(dataset)[part]]
        return None if None in counts else sum(count or 0 for count in counts)

    def is_estimate(self, dataset: str) -> bool:
        """Whether some tars were not counted."""
        return any(not tar.is_counted for tar in self.tars(dataset))

    @property
    def source(self) -> EncoderShape:
        """Tokens of the source encoder."""
        return self.shape(self.plan.config.encoders.source)

    @property
    def target(self) -> EncoderShape:
        """Tokens of the target encoder."""
        return self.shape(self.plan.config.encoders.target)

    def as_read(self, shape: EncoderShape) -> EncoderShape:
        """Return what a run sees of an encoder's tokens in the configured layout."""
        layout = self.plan.config.data.layout
        if layout == "pooled":
            return replace(shape, tokens=1, width=shape.pooled_width, grid=(1, 1))
        return replace(shape, tokens=shape.tokens - (layout == "patches"))

    def views(self, run: str) -> int:
        """Return the images of one training sample of a run: the views of an object, or one where they are single."""
        config = self.plan.config
        return 1 if config.run(run).model.views == "single" else config.datasets[config.data.train].views

    def as_sample(self, shape: EncoderShape, views: int) -> EncoderShape:
        """Return what is seen of so many views of an object together, in the configured layout."""
        read = self.as_read(shape)
        return replace(read, tokens=views * read.tokens)

    def shape(self, encoder: Encoder) -> EncoderShape:
        """Return what an encoder makes of an image."""
        if encoder.name not in self._shapes:
            known = next(self._stored_shapes(encoder), None)
            self._shapes[encoder.name] = known or encoder_shape(encoder.name)
        return self._shapes[encoder.name]

    @cached_property
    def _tars(self) -> dict[str, list[TarFacts]]:
        return {}

    @cached_property
    def _shapes(self) -> dict[str, EncoderShape]:
        return {}

    def _find_tars(self, dataset: str) -> list[TarFacts]:
        described = self.plan.config.datasets[dataset]
        names = self.plan.tars(dataset)
        if isinstance(described, DemoDataset | SolidsDataset | CocoDataset):
            counts = [described.images_per_shard] * (len(names) - 1)
            counts.append(described.images - sum(counts))
            sizes = [made_tar_bytes(described, count) for count in counts]
            facts = zip(names, sizes, counts, strict=True)
            return [TarFacts(name, size, count, is_counted=True) for name, size, count in facts]
        if isinstance(described, FolderDataset):
            sizes = [path.stat().st_size for path in folder_tars(described)]
        else:
            sizes = [tar.bytes for tar in hub_tars(described, self.plan.places)]
        limit = described.samples_per_shard
        images = None if limit is None else limit * described.views
        return self._counted(dataset, dict(zip(names, sizes, strict=True)), images)

    def _counted(self, dataset: str, sizes: dict[str, int], limit: int | None) -> list[TarFacts]:
        found = {name: self._samples_of_store(dataset, name) for name in sizes}
        counted = [name for name, count in found.items() if count]
        per_byte = sum(found[name] or 0 for name in counted) / max(1, sum(sizes[name] for name in counted))
        facts = []
        for name, size in sizes.items():
            estimate = round(per_byte * size) if counted else limit
            if estimate is not None and limit is not None:
                estimate = min(estimate, limit)
            images = found[name]
            facts.append(TarFacts(name, size, estimate if images is None else images, images is not None))
        return facts

    def _samples_of_store(self, dataset: str, tar: str) -> int | None:
        """Return the samples of the finished store of a tar, of whichever encoder has one."""
        for encoder_id in dict.fromkeys((self.plan.target_id, self.plan.source_id)):
            folder = self.plan.places.store(dataset, encoder_id, tar)
            if has_manifest(folder):
                return int(read_json(folder / MANIFEST)["counts"]["samples"])
        return None

    def _stored_shapes(self, encoder: Encoder) -> Iterator[EncoderShape]:
        """Yield what finished stores of an encoder say, if its weights are here, too."""
        if not has_manifest(self.plan.places.weights(self.plan.weights_id(encoder))):
            return
        identity = self.plan.encoder_id(encoder)
        for dataset in self.plan.datasets:
            folder = self.plan.places.store(dataset, identity, self.plan.tars(dataset)[0])
            if has_manifest(folder):
                yield from _shape_in(folder / read_json(folder / MANIFEST)["content"] / DOCUMENT)


def made_tar_bytes(described: DemoDataset | SolidsDataset | CocoDataset, images: int) -> int:
    """Return the size of a tar of `images` that the workflow draws, or makes of the archives of COCO."""
    if isinstance(described, CocoDataset):
        return described.pictures.bytes * images // described.images
    if isinstance(described, SolidsDataset):
        return solids_tar_bytes(images // described.views, described.views)
    return demo_tar_bytes(images)


def _shape_in(document: Path) -> Iterator[EncoderShape]:
    if not document.is_file():  # deleted after its conversion
        return
    attributes: dict[str, Any] = read_json(document)["attributes"]
    (tokens, width), (pooled,) = attributes["arrays"][TOKENS], attributes["arrays"][POOLED]
    rows, columns = attributes["grid"]
    yield EncoderShape(tokens, width, pooled, (rows, columns), weight_bytes=0)
