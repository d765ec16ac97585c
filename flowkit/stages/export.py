"""Stage `export`: the evaluation set's tokens by a run, in the form of every consumer that the configuration names.

    <sampler>/<consumer>/embeddings.safetensors   or .npz: one float32 tensor, a row per image
    <sampler>/<consumer>/keys.json                the keys of the rows, in order
    <sampler>/<consumer>/export.json              layout, shape, norm, encoder, what was dropped or left out, and what
                                                  the rows were made from

Consumers that take the same form share one file by hard links. Run `true` is the target encoder's own tokens. The same
files can go into a folder of the user's, with a manifest of their digests.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from flowkit.errors import ConfigError, StageError
from flowkit.export.consumers import Consumer, consumer_named, demand_expected_encoder
from flowkit.export.exporter import DESCRIPTION, Content, share_export, write_export
from flowkit.export.sources import ArrayTokens, TokenSource, sampled
from flowkit.features.store import TokenStore
from flowkit.paths import CLOSED_FORM, HEAD, MANIFEST
from flowkit.progress import Progress, logger
from flowkit.provenance import folder_digests, read_json, write_json
from flowkit.stages.evaluation_set import evaluation_count
from flowkit.stages.export_jobs import TRUE
from flowkit.stages.paired import open_pairs, stores_of
from flowkit.stages.session import Spec, committed, open_session

ONE_WAY = (CLOSED_FORM, "direct-1")
"""Samplers of runs that have one way to be sampled, whatever the configuration names."""
WHOLE = "cls_patches"


def run(spec: Spec) -> None:
    """Commit the exports of `target.run`."""
    tokens = _Tokens(spec)
    with open_session(spec, spec.places.export(spec.target["run"]), tokens.inputs) as session:
        if not session.is_done:
            shutil.rmtree(session.work)
            session.commit(_write_all(session.work, tokens))


def run_into(specs: Sequence[Spec], folder: Path) -> Iterator[Path]:
    """Write the exports of every `target.run` into `<folder>/<run>` and yield it; no result is touched.

    Each appears as a whole or not at all. Raises `StageError` before anything is written if one of them exists.
    """
    for spec in specs:
        demand_new(folder / spec.target["run"])
    for spec in specs:
        yield _write_into(spec, folder / spec.target["run"])


def _write_into(spec: Spec, final: Path) -> Path:
    part = final.with_name(f".{final.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        counts = _write_all(part, _Tokens(spec))
        manifest = {
            "stage": "export",
            "files": folder_digests(part),
            "counts": counts,
            "spec": spec.as_dict(),
        }
        write_json(part / MANIFEST, manifest)
        demand_new(final)
        part.rename(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    logger.info("stage=export run=%s written=%s", final.name, final)
    return final


def demand_new(folder: Path) -> None:
    """Raise `StageError` if there is anything at a place that an export is to fill."""
    if folder.exists() or folder.is_symlink():
        raise StageError(
            f"{folder}: exists, and exports are not written over one another; name another folder"
        )


def _write_all(folder: Path, tokens: _Tokens) -> dict[str, Any]:
    """Write every sampler's export for every consumer; returns the counts of the manifest."""
    settings = tokens.spec.values["export"]
    exports: dict[str, dict[str, Any]] = {}
    for sampler, source in tokens.by_sampler():
        made: dict[str, Path] = {}
        for name in settings["consumers"]:
            consumer, place = consumer_named(name), folder / sampler / name
            if consumer.form in made:
                described = share_export(place, consumer, made[consumer.form])
            else:
                described = _write_one(place, consumer, source, tokens, sampler)
                made[consumer.form] = place
            _warn(described)
            exports.setdefault(sampler, {})[name] = described["shape"]
    return {"exports": exports, "format": settings["format"]}


def _write_one(
    folder: Path, consumer: Consumer, source: TokenSource, tokens: _Tokens, sampler: str
) -> dict[str, Any]:
    progress = Progress(f"export {tokens.run} {sampler} {consumer.form}", source.shape[0], "image")
    described = write_export(
        folder,
        consumer,
        source,
        tokens.content_for(consumer),
        file_format=tokens.spec.values["export"]["format"],
        about=tokens.about(sampler),
        advance=progress.advance,
    )
    progress.close()
    return described


def _warn(described: Mapping[str, Any]) -> None:
    for reason, keys in described["left_out"].items():
        if keys:
            logger.warning(
                "run=%s sampler=%s consumer=%s left_out=%d reason=%r first=%s, all in %s",
                described["run"],
                described["sampler"],
                described["consumer"],
                len(keys),
                reason,
                keys[0],
                DESCRIPTION,
            )


@dataclass(frozen=True)
class _Tokens:
    """The tokens that are exported, where they come from and what they are."""

    spec: Spec

    @property
    def run(self) -> str:
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

    @cached_property
    def _store(self) -> TokenStore:
        """One of the target's stores, for what it says of the encoder."""
        return TokenStore(stores_of(self.spec, self.spec.target["dataset"], self.spec.target["target"])[0])

    @property
    def views(self) -> int:
        """Images of one sample of the evaluation set; each of them is a row of its own in an export."""
        return int(self._store.attributes.get("views", 1))

    def by_sampler(self) -> Iterator[tuple[str, TokenSource]]:
        """Yield every sampler that is exported, with its tokens."""
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
            yield sampler, sampled(content / sampler)

    def _true(self) -> TokenSource:
        data = {"layout": WHOLE, "source_tokens": "all"}
        pairs = open_pairs(self.spec, self.spec.target["dataset"], data=data)
        ids = np.arange(evaluation_count(self.spec, pairs))
        return ArrayTokens(pairs.target(ids), pairs.samples()["key"].iloc[: len(ids)].tolist())

    def content_for(self, consumer: Consumer) -> Content:
        """What the tokens are to a consumer; raises `ConfigError` if it was trained on another encoder's."""
        encoder = self._store.attributes["encoder"]
        demand_expected_encoder(consumer.name, encoder, any_encoder=self.spec.values["export"]["any_encoder"])
        if not consumer.needs_class_token or self.layout != WHOLE:
            return Content(self.layout, self.views)
        head, _ = committed(self.spec.places.head(self.spec.target["target"]))
        return Content(self.layout, self.views, load_file(head / HEAD))

    def about(self, sampler: str) -> dict[str, Any]:
        """What only the stage knows of an export."""
        attributes = self._store.attributes
        return {
            "run": self.run,
            "sampler": sampler,
            "data_set": self.spec.target["dataset"],
            "scale": "raw: that of the encoder's own tokens",
            "encoder": attributes["encoder"],
            "encoder_weights_sha256": attributes.get("weights_sha256"),
            "encoder_layer": attributes.get("layer"),
            "any_encoder": self.spec.values["export"]["any_encoder"],
            "made_from": {_place(path): read_json(path / MANIFEST)["content"] for path in self.inputs},
        }


def _place(folder: Path) -> str:
    """The last two names of a result folder: what it is, without where it lies on this machine."""
    return "/".join(folder.parts[-2:])
