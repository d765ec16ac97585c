"""Stage `ceilings`: the target encoder's own tokens of the evaluation images, made anew in another way.

true_fp16     as extraction made them, before they were rounded to float16: what storage costs
true_jpeg75   of the images after they were JPEGs of quality 75
true_crop     of a window of 95 % of width and height

No translation needs to be better than these. Each is a run of its own with one sampler, as baselines are; see
`flowkit.features.perturbation` for the changes of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from flowkit.encoders.registry import load_encoder
from flowkit.features.decoding import Change
from flowkit.features.loader import PairedTokens, TokensOfSide
from flowkit.features.perturbation import crop_95, jpeg_75
from flowkit.features.samples import UnroundedTokens, whole_samples, write_tokens, write_unrounded
from flowkit.features.second_pass import encode_again
from flowkit.paths import CLOSED_FORM
from flowkit.progress import Progress, logger
from flowkit.runtime import threads
from flowkit.stages.device import best_device
from flowkit.stages.evaluation_set import evaluation_count
from flowkit.stages.inputs import tar_of, weights_of
from flowkit.stages.paired import open_pairs
from flowkit.stages.session import Session, Spec, committed, open_session

if TYPE_CHECKING:
    from flowkit.encoders.contract import FrozenEncoder

BATCH = 512
CHANGES: dict[str, Change | None] = {"true_fp16": None, "true_jpeg75": jpeg_75, "true_crop": crop_95}


def run(spec: Spec) -> None:
    """Commit the tokens of every ceiling in `target.ceilings` that is not there yet."""
    dataset, settings = spec.target["dataset"], spec.values["encoder"]
    weights, weights_digest = weights_of(spec)
    pairs_folder = spec.places.pairs(dataset, spec.target["source"], spec.target["target"])

    @cache
    def encoder() -> FrozenEncoder:
        return load_encoder(
            settings["name"],
            weights,
            precision=settings["precision"],
            device=best_device(),
            compile=spec.values["encoders"]["compile"],
        )

    for name in spec.target["ceilings"].split(","):
        one = replace(spec, target={**spec.target, "ceilings": name})
        folder = spec.places.samples(name, dataset)
        with open_session(one, folder, [pairs_folder], content=[weights_digest]) as session:
            if not session.is_done:
                _make(session, name, encoder)


def _make(session: Session, name: str, encoder: Callable[[], FrozenEncoder]) -> None:
    spec = session.spec
    # what is shown of the source makes no difference to the target
    data = {"layout": spec.values["data"]["layout"], "source_tokens": "all"}
    pairs = open_pairs(spec, spec.target["dataset"], data=data)
    images = evaluation_count(spec, pairs)
    keys = [str(key) for key in pairs.samples()["key"].iloc[:images]]
    tower = encoder()
    progress = Progress(f"ceilings {name}", images * pairs.views, "image")
    of_images = _tokens(spec, pairs, images, tower, CHANGES[name], progress)
    tokens = whole_samples(of_images, pairs.views)
    folder = session.work / CLOSED_FORM
    if CHANGES[name] is None:
        batch = max(1, BATCH // pairs.views)
        _compare(name, write_unrounded(folder, tokens, keys=keys), pairs.target(np.arange(images)), batch)
    else:
        write_tokens(folder, tokens, {"run": name, "sampler": CLOSED_FORM}, keys=keys)
    progress.close()
    session.record.rates[f"images_per_s {CLOSED_FORM}"] = progress.rate
    session.commit(
        {"samplers": [CLOSED_FORM], "images": images, "nfe": {CLOSED_FORM: 0}, "noise": {CLOSED_FORM: 1}}
    )


def _tokens(
    spec: Spec,
    pairs: PairedTokens,
    images: int,
    encoder: FrozenEncoder,
    change: Change | None,
    progress: Progress,
) -> Iterator[NDArray[np.float32]]:
    """Yield tokens [n, T, D] of images in the layout of the evaluation, in the order of the pairs, view by view."""
    dataset, settings, layout = spec.target["dataset"], spec.values["encoders"], spec.values["data"]["layout"]
    pairs_folder = spec.places.pairs(dataset, spec.target["source"], spec.target["target"])
    tars = committed(pairs_folder)[1]["counts"]["tars"]
    tar_of_image, rows = pairs.images(images)
    for number in np.unique(tar_of_image):
        batches = encode_again(
            tar_of(spec, dataset, tars[number])[0],
            encoder,
            rows[tar_of_image == number],
            batch_size=settings["batch_size"],
            limit=spec.values["datasets"][dataset]["samples_per_shard"],
            views=spec.values["datasets"][dataset]["views"],
            decode=settings["decode"],
            decode_threads=threads(),
            change=change,
        )
        for tokens_NTD, pooled_NP in batches:
            progress.advance(len(tokens_NTD))
            yield _in_layout(tokens_NTD, pooled_NP, layout).numpy()


def _in_layout(tokens_NTD: torch.Tensor, pooled_NP: torch.Tensor, layout: str) -> torch.Tensor:
    """Return what `PairedTokens` reads of a store: every encoder puts the class token first."""
    if layout == "pooled":
        return pooled_NP[:, None]
    return tokens_NTD[:, 1:] if layout == "patches" else tokens_NTD


def _compare(name: str, unrounded: UnroundedTokens, stored: TokensOfSide, batch: int) -> None:
    """Log how many images would not be stored as they are: extraction ran elsewhere, or with other threads."""
    unlike = 0
    for first in range(0, len(stored), batch):
        part = slice(first, first + batch)
        halves = unrounded[part].astype(np.float16).astype(np.float32)
        unlike += int((halves != stored[part]).any(axis=(1, 2)).sum())
    level = logger.warning if unlike else logger.info
    level("ceiling=%s images=%d not_as_stored=%d", name, len(stored), unlike)
