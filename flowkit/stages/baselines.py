"""Stage `baselines`: closed-form translators, fitted on the training pairs and applied to the evaluation set.

Each baseline is a run of its own with the sampler name `closed-form`; `true` is the true tokens themselves, the
ceiling of every figure.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from flowkit.evaluation.baselines import Baseline, fit_baselines
from flowkit.features.loader import PairedTokens
from flowkit.features.samples import write_tokens
from flowkit.progress import logger
from flowkit.stages.paired import open_pairs, open_training_pairs
from flowkit.stages.session import Session, Spec, open_session

SAMPLER = "closed-form"
TRUE = "true"
BATCH = 512


def run(spec: Spec) -> None:
    """Commit the predictions of every baseline in `target.baselines` that is not there yet."""
    dataset, train = spec.target["dataset"], spec.target["train"]
    pair_folders = [
        spec.places.pairs(name, spec.target["source"], spec.target["target"]) for name in (train, dataset)
    ]
    names = spec.target["baselines"].split(",")
    with ExitStack() as stack:
        missing: dict[str, Session] = {}
        for name in names:
            one = replace(spec, target={**spec.target, "baselines": name})
            session = stack.enter_context(open_session(one, spec.places.samples(name, dataset), pair_folders))
            if not session.is_done:
                missing[name] = session
        if not missing:
            return
        fitted = _fit(spec, train, [name for name in missing if name != TRUE])
        evaluation = open_pairs(spec, dataset)
        source, target = read_first(evaluation, spec.values["evaluation"]["images"])
        for name, session in missing.items():
            predicted = target if name == TRUE else fitted[name].predict(source)
            folder = session.work / SAMPLER
            write_tokens(
                folder,
                np.array_split(predicted, -(-len(predicted) // BATCH)),
                {"run": name, "sampler": SAMPLER},
            )
            session.commit({"samplers": [SAMPLER], "images": len(predicted), "nfe": {SAMPLER: 0}})
            logger.info("baseline=%s images=%d", name, len(predicted))


def _fit(spec: Spec, train: str, names: list[str]) -> dict[str, Baseline]:
    if not names:
        return {}
    pairs = open_training_pairs(spec, train)
    source, target = read_first(pairs, len(pairs))
    return fit_baselines(source, target, names)


def read_first(pairs: PairedTokens, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return source [N, T, D] and target tokens of the first pairs, as float32."""
    source, target = pairs.batch(np.arange(min(count, len(pairs))))
    return source.numpy(), target.numpy()
