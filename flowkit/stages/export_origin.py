"""What an export says of where its rows come from: encoders, weights, preprocessing, checkpoint, guidance, noise, code.

Exports leave the machine, so no path of it is named: files by their own names, results by the last two parts of theirs.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowkit.encoders.names import brought_weights, form_with_file
from flowkit.export.consumers import Consumer
from flowkit.features.store import TokenStore
from flowkit.paths import MANIFEST, RUN_RECORD
from flowkit.provenance import PACKAGE, digest_of, read_json
from flowkit.stages.export_jobs import TRUE
from flowkit.stages.exported_tokens import ExportedTokens
from flowkit.stages.session import Spec, session_key

PATCH_ORDER = "row by row, from the top left"


def origin(tokens: ExportedTokens, consumer: Consumer, sampler: str) -> dict[str, Any]:
    """Return what only the stage knows of an export."""
    spec, store = tokens.spec, tokens.store("target")
    encoder = _encoder(store)
    patches = {"grid": store.attributes["grid"], "patch_order": PATCH_ORDER}
    return {
        "run": tokens.run,
        "sampler": sampler,
        "data_set": spec.target["dataset"],
        "scale": "raw: that of the encoder's own tokens",
        "encoder": encoder["name"],
        "encoder_weights": encoder["weights"],
        "encoder_weights_sha256": encoder["weights_sha256"],
        "encoder_layer": store.attributes.get("layer"),
        "preprocessing": encoder["preprocessing"],
        "source_encoder": _encoder(tokens.store("source")),
        "any_encoder": spec.values["export"]["any_encoder"],
        **({} if consumer.form == "pooled" else patches),
        "made_from": {_place(path): read_json(path / MANIFEST)["content"] for path in tokens.inputs},
        "translated": None if tokens.run == TRUE else _translation(spec, tokens.run),
        "flowkit": {"version": _version(), "code": digest_of(spec.code)[:16]},
    }


def shown_name(encoder: str) -> str:
    """Return an encoder's name with a file or folder of the user's by its own name, without where it lies."""
    brought = brought_weights(encoder)
    return encoder if brought is None else form_with_file(encoder).replace("FILE", brought.name)


def _encoder(store: TokenStore) -> dict[str, Any]:
    name = store.attributes["encoder"]
    published = "as published under this name"
    brought = "from a file, which the name says to be these; they were not compared with what is published"
    return {
        "name": shown_name(name),
        "weights": published if brought_weights(name) is None else brought,
        "weights_sha256": store.attributes.get("weights_sha256"),
        "preprocessing": store.attributes.get("preprocessing"),
    }


def _translation(spec: Spec, run: str) -> dict[str, Any] | None:
    """Return how a run was sampled, None for a closed form or where nothing tells.

    `checkpoint` is the content of the training that the samples were made from; None if it has since been replaced.
    """
    target, places = spec.target, spec.places
    samples = places.samples(run, target["dataset"])
    if not (samples / RUN_RECORD).is_file():
        return None
    record = read_json(samples / RUN_RECORD)
    if record["stage"] != "sample":
        return None
    sampled, settings = record["spec"], record["spec"]["values"]["sampling"]
    of_samples = replace(
        spec,
        stage="sample",
        target=sampled["target"],
        values=sampled["values"],
        code=tuple(record["code"]),
    )
    train = places.train(run)
    is_current = False
    if (train / MANIFEST).is_file():
        pairs = places.pairs(target["dataset"], target["source"], target["target"])
        key = session_key(of_samples, [train, pairs])
        is_current = (samples / "state" / f"made-{key}.json").is_file()
    return {
        "checkpoint": read_json(train / MANIFEST)["content"] if is_current else None,
        "weights": settings["weights"],
        "guidance_scale": settings["guidance_scale"],
        "noise_seed": settings["seed"],
    }


def _version() -> str | None:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def _place(folder: Path) -> str:
    """The last two names of a result folder: what it is, without where it lies on this machine."""
    return "/".join(folder.parts[-2:])
