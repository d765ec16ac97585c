"""Stage `export`: the evaluation set's tokens by a run, in the form of every consumer that the configuration names.

    <sampler>/<consumer>/embeddings.safetensors   or .npz: one float32 tensor, a row per image
    <sampler>/<consumer>/keys.json                the keys of the rows, in order
    <sampler>/<consumer>/export.json              layout, shape, norm, encoder, what was dropped or left out, and what
                                                  the rows were made from

Consumers that take the same form share one file by hard links. Run `true` is the target encoder's own tokens. The same
files can go into a folder of the user's (export_into.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowkit.export.consumers import Consumer, consumer_named, demand_form
from flowkit.export.exporter import DESCRIPTION, share_export, write_export
from flowkit.export.sources import TokenSource
from flowkit.progress import Progress, logger
from flowkit.stages.export_origin import origin
from flowkit.stages.exported_tokens import ExportedTokens
from flowkit.stages.session import Spec, open_session


def run(spec: Spec) -> None:
    """Commit the exports of `target.run`."""
    tokens = ExportedTokens(spec)
    with open_session(spec, spec.places.export(spec.target["run"]), tokens.inputs) as session:
        if not session.is_done:
            shutil.rmtree(session.work)
            session.commit(write_all(session.work, tokens))


def write_all(folder: Path, tokens: ExportedTokens) -> dict[str, Any]:
    """Write every sampler's export for every consumer; returns the counts of the manifest."""
    settings = tokens.spec.values["export"]
    exports: dict[str, dict[str, Any]] = {}
    for name in settings["consumers"]:
        demand_form(consumer_named(name), tokens.layout)
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
    folder: Path, consumer: Consumer, source: TokenSource, tokens: ExportedTokens, sampler: str
) -> dict[str, Any]:
    progress = Progress(f"export {tokens.run} {sampler} {consumer.form}", source.shape[0], "image")
    described = write_export(
        folder,
        consumer,
        source,
        tokens.content_for(consumer),
        file_format=tokens.spec.values["export"]["format"],
        about=origin(tokens, consumer, sampler),
        advance=progress.advance,
    )
    progress.close()
    return described


def _warn(described: Mapping[str, Any]) -> None:
    for what, reasons in described["left_out"].items():
        for reason, keys in reasons.items():
            if keys:
                logger.warning(
                    "run=%s sampler=%s consumer=%s left_out=%d of=%s reason=%r first=%s, all in %s",
                    described["run"],
                    described["sampler"],
                    described["consumer"],
                    len(keys),
                    what,
                    reason,
                    keys[0],
                    DESCRIPTION,
                )
