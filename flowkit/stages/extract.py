"""Stage `extract`: a batch of tars through one frozen encoder, each into a token store of its own.

The encoder is loaded once and only when a tar needs it. Each tar commits by itself, so a killed job goes on with the
tar in hand, at a batch boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from typing import TYPE_CHECKING

from flowkit.encoders.registry import load_encoder
from flowkit.features.extraction import extract_tar
from flowkit.progress import Progress, logger
from flowkit.runtime import threads
from flowkit.shards.catalogue import TarDescription
from flowkit.stages.device import best_device
from flowkit.stages.inputs import tar_of, weights_of
from flowkit.stages.session import Spec, open_session
from flowkit.stages.stores import digests_of_store

if TYPE_CHECKING:
    from flowkit.encoders.contract import FrozenEncoder


def run(spec: Spec) -> None:
    """Commit one store for each tar in `target.tars`."""
    settings = spec.values["encoder"]
    weights, _ = weights_of(spec)

    @cache
    def encoder() -> FrozenEncoder:
        return load_encoder(
            settings["name"],
            weights,
            precision=settings["precision"],
            device=best_device(),
            compile=spec.values["encoders"]["compile"],
        )

    tars = spec.target["tars"].split(",")
    progress = Progress(f"extract {settings['name']}", len(tars), "tar")
    for tar in tars:
        _extract_one(replace(spec, target={**spec.target, "tars": tar}), encoder)
        progress.advance()
    progress.close()


def _extract_one(spec: Spec, encoder: Callable[[], FrozenEncoder]) -> None:
    dataset, encoder_id, tar = spec.target["dataset"], spec.target["encoder"], spec.target["tars"]
    path, described = tar_of(spec, dataset, tar)
    _, weights_digest = weights_of(spec)
    folder = spec.places.store(dataset, encoder_id, tar)
    described_set = spec.values["datasets"][dataset]
    with open_session(
        spec, folder, [], content=[weights_digest, described["sha256"]], digests=digests_of_store
    ) as session:
        if session.is_done:
            return
        progress: Progress | None = None

        def begin(done: int, total: int) -> None:
            nonlocal progress
            progress = Progress(f"extract {tar}", total, "image", done=done)

        def advance(count: int) -> None:
            if progress is not None:
                progress.advance(count)

        counts = extract_tar(
            path,
            encoder(),
            session.work,
            batch_size=spec.values["encoders"]["batch_size"],
            attributes={"weights_sha256": weights_digest, "precision": spec.values["encoder"]["precision"]},
            source=TarDescription(name=tar, bytes=described["bytes"], sha256=described["sha256"]),
            begin=begin,
            progress=advance,
            limit=described_set["samples_per_shard"],
            views=described_set["views"],
            decode=spec.values["encoders"]["decode"],
            decode_threads=threads(),
        )
        if progress is not None:
            progress.close()
            session.record.rates["images_per_s"] = progress.rate
        if counts.rejects:
            logger.info("tar=%s samples=%d rejects=%d", tar, counts.samples, counts.rejects)
        session.commit(asdict(counts))
