"""What stage `export` hands over: a run's samples or the target's own tokens, held against the configuration.

Samples of an older configuration may have another layout, other images or another order: none of it can be seen in an
export any more, so it is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from flowkit.errors import ConfigError, StoreError
from flowkit.export.consumers import Consumer, demand_expected_encoder
from flowkit.export.exporter import Content
from flowkit.export.sources import ArrayTokens, TokenSource, sampled
from flowkit.features.loader import PairedTokens
from flowkit.features.samples import open_samples
from flowkit.features.store import TokenStore
from flowkit.paths import CLOSED_FORM, HEAD
from flowkit.stages.evaluation_set import evaluation_count
from flowkit.stages.export_jobs import TRUE
from flowkit.stages.paired import open_pairs, stores_of
from flowkit.stages.sample_keys import demand_all_keys
from flowkit.stages.session import Spec, committed

ONE_WAY = (CLOSED_FORM, "direct-1")
"""Samplers of runs that have one way to be sampled, whatever the configuration names."""
WHOLE = "cls_patches"


@dataclass(frozen=True)
class ExportedTokens:
    """The tokens that are exported, where they come from and what they are."""

    spec: Spec

    @property
    def run(self) -> str:
        """The run; `true` is the target's own tokens."""
        return self.spec.target["run"]

    @property
    def inputs(self) -> list[Path]:
        """The results that are read."""
        target, places = self.spec.target, self.spec.places
        pairs = places.pairs(target["dataset"], target["source"], target["target"])
        read = [pairs, places.head(target["target"])]
        return read if self.run == TRUE else [*read, places.samples(self.run, target["dataset"])]

    @property
    def layout(self) -> str:
        """Stores hold the class token whatever the layout of the experiment."""
        return WHOLE if self.run == TRUE else str(self.spec.values["data"]["layout"])

    def store(self, side: str) -> TokenStore:
        """One of the stores of side `source` or `target`, for what it says of the encoder."""
        return TokenStore(stores_of(self.spec, self.spec.target["dataset"], self.spec.target[side])[0])

    @cached_property
    def _target(self) -> TokenStore:
        return self.store("target")

    @property
    def views(self) -> int:
        """Images of one sample of the evaluation set; each of them is a row of its own in an export."""
        return int(self._target.attributes.get("views", 1))

    def by_sampler(self) -> Iterator[tuple[str, TokenSource]]:
        """Yield every sampler that is exported, with its tokens.

        Raises `ConfigError` for a sampler that was not run, `StoreError` for samples of another configuration.
        """
        if self.run == TRUE:
            yield CLOSED_FORM, self._true()
            return
        content, manifest = committed(self.spec.places.samples(self.run, self.spec.target["dataset"]))
        known = manifest["counts"]["samplers"]
        asked = self.spec.values["export"].get("samplers")
        for sampler in known[:1] if asked is None or known[0] in ONE_WAY else asked:
            if sampler not in known:
                raise ConfigError(
                    f"export.samplers={sampler}: run {self.run} was sampled with {', '.join(known)}"
                )
            self._demand_shape(sampler, open_samples(content / sampler).shape[1:])
            demand_all_keys(self._keys, open_samples(content / sampler), f"{self.run}, {sampler}")
            yield sampler, sampled(content / sampler)

    def _pairs(self, layout: str) -> PairedTokens:
        data = {"layout": layout, "source_tokens": "all"}
        return open_pairs(self.spec, self.spec.target["dataset"], data=data)

    @cached_property
    def _keys(self) -> list[str]:
        """Keys of the evaluation's images, or of its objects."""
        pairs = self._pairs("patches")
        return [str(key) for key in pairs.samples()["key"].iloc[: evaluation_count(self.spec, pairs)]]

    def _true(self) -> TokenSource:
        pairs = self._pairs(WHOLE)
        ids = np.arange(evaluation_count(self.spec, pairs))
        return ArrayTokens(pairs.target(ids), self._keys)

    def _shape_of(self, layout: str) -> tuple[int, int]:
        """(T, D) of a sample in a layout, by what the target's store says of its grid, class token and widths."""
        if layout == "pooled":
            return self.views, self._target.pooled_width
        rows, columns = self._target.attributes["grid"]
        of_view = rows * columns + int(layout == WHOLE)
        return self.views * of_view, self._target.token_shape[1]

    def _demand_shape(self, sampler: str, found: tuple[int, ...]) -> None:
        """Raise `StoreError` unless samples have the shape of the configured layout."""
        expected = self._shape_of(self.layout)
        if tuple(found) == expected:
            return
        fitting = [name for name in (WHOLE, "patches", "pooled") if self._shape_of(name) == tuple(found)]
        remedy = f"data.layout={fitting[0]} would fit them" if fitting else "no layout fits them"
        encoder = self._target.attributes["encoder"]
        raise StoreError(
            f"samples of {self.run}, {sampler}: {found[0]} tokens of {found[1]} channels, expected {expected[0]} of "
            f"{expected[1]} for data.layout={self.layout} and {self.views} view(s) of {encoder}; they were made with "
            f"another configuration ({remedy}): sample the run again, or export with the one that it was sampled with"
        )

    def content_for(self, consumer: Consumer) -> Content:
        """What the tokens are to a consumer; raises `ConfigError` if it was trained on another encoder's."""
        encoder = self._target.attributes["encoder"]
        demand_expected_encoder(consumer.name, encoder, any_encoder=self.spec.values["export"]["any_encoder"])
        if not consumer.needs_class_token or self.layout != WHOLE:
            return Content(self.layout, self.views)
        head, _ = committed(self.spec.places.head(self.spec.target["target"]))
        return Content(self.layout, self.views, load_file(head / HEAD))
