"""Stage `baselines`: closed-form translators, fitted on the training pairs and applied to the evaluation set.

Objects of several views are translated view by view, which leaves more samples and fewer inputs to fit than whole
objects would; only the constant has a mean for each view. Each baseline is a run of its own with the sampler name
`closed-form`; `true` is the true tokens themselves, the ceiling of every figure. Tokens are read and written in chunks;
what a fit does not keep in memory lies beside the work of the run that is committed last.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowkit.evaluation.baselines import Baseline, fit_baselines
from flowkit.evaluation.ridge import RidgeMap
from flowkit.evaluation.token_ridge import TokenMap
from flowkit.evaluation.tokens import Tokens, evenly_spaced, token_chunks
from flowkit.features.samples import whole_samples, write_tokens
from flowkit.paths import CLOSED_FORM
from flowkit.progress import Progress
from flowkit.stages.evaluation_set import evaluation_count
from flowkit.stages.paired import open_pairs, open_training_pairs
from flowkit.stages.session import Session, Spec, open_session

TRUE = "true"
OF_OBJECTS = ("constant",)


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
        if missing:
            _make(spec, missing)


def _make(spec: Spec, missing: dict[str, Session]) -> None:
    scratch = list(missing.values())[-1].work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    evaluation = open_pairs(spec, spec.target["dataset"])
    ids = np.arange(evaluation_count(spec, evaluation))
    asked, views = [name for name in missing if name != TRUE], evaluation.views
    whole = [name for name in asked if views == 1 or name in OF_OBJECTS]
    fitted = _fit(spec, whole, scratch)
    by_view = _fit(spec, [name for name in asked if name not in whole], scratch, by_view=True)
    fitted |= by_view
    keys, source, target = evaluation.keys(ids), evaluation.source(ids), evaluation.target(ids)
    of_views = open_pairs(spec, spec.target["dataset"], by_view=True).source(np.arange(len(ids) * views))
    for name, session in missing.items():
        if name == TRUE:
            predicted = _read(target)
        elif name in by_view:
            predicted = whole_samples(fitted[name].predict(of_views), views)
        else:
            predicted = fitted[name].predict(source)
        made = session.work / "predictions"
        progress = Progress(f"baseline {name}", len(ids), "image")
        write_tokens(
            made / CLOSED_FORM,
            _counted(predicted, progress),
            {"run": name, "sampler": CLOSED_FORM},
            keys=keys,
        )
        progress.close()
        session.record.rates[f"images_per_s {CLOSED_FORM}"] = progress.rate
        counts = {
            "samplers": [CLOSED_FORM],
            "images": len(ids),
            "nfe": {CLOSED_FORM: 0},
            "noise": {CLOSED_FORM: 1},
        }
        session.commit(counts | _facts(fitted.get(name)), folder=made)


def _fit(spec: Spec, names: list[str], scratch: Path, *, by_view: bool = False) -> dict[str, Baseline]:
    if not names:
        return {}
    settings = spec.values["closed_forms"]
    pairs = open_training_pairs(spec, spec.target["train"], by_view=by_view)
    ids = evenly_spaced(len(pairs), settings["images"])
    return fit_baselines(
        pairs.source(ids), pairs.target(ids), names, inputs=settings["inputs"], scratch=scratch
    )


def _facts(baseline: Baseline | None) -> dict[str, float]:
    """What was chosen for ridge, for its manifest."""
    if not isinstance(baseline, RidgeMap):
        return {"penalty": baseline.penalty} if isinstance(baseline, TokenMap) and baseline.penalty else {}
    return {"penalty": baseline.penalty, "inputs": baseline.inputs.count}


def _read(tokens: Tokens) -> Iterator[NDArray[np.floating]]:
    for rows in token_chunks(tokens):
        yield tokens[rows]


def _counted(batches: Iterator[NDArray[np.floating]], progress: Progress) -> Iterator[NDArray[np.floating]]:
    for batch in batches:
        yield batch
        progress.advance(len(batch))
