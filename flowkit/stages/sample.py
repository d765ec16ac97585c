"""Stage `sample`: the evaluation set, translated by a trained run with each of its samplers.

One folder per sampler, each a token store. A regression has one way to be sampled, whatever the configuration names.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from flowkit.features.loader import PairedTokens
from flowkit.features.samples import write_tokens
from flowkit.progress import Progress
from flowkit.sampling.sampler import Sampler, parse_sampler, resolve, sample
from flowkit.stages.device import best_device
from flowkit.stages.paired import open_pairs
from flowkit.stages.session import Spec, committed, open_session
from flowkit.translator import Translator

BATCH = 128


def run(spec: Spec) -> None:
    """Commit the samples of `target.run` for the evaluation set."""
    dataset, name = spec.target["dataset"], spec.target["run"]
    pairs_folder = spec.places.pairs(dataset, spec.target["source"], spec.target["target"])
    folder = spec.places.samples(name, dataset)
    with open_session(spec, folder, [spec.places.train(name), pairs_folder]) as session:
        if session.is_done:
            return
        settings = spec.values["sampling"]
        trained = committed(spec.places.train(name))[0]
        chosen = trained / "best" if settings["weights"] == "best" else trained
        translator = Translator.load(chosen).to(best_device())
        pairs = open_pairs(spec, dataset)
        images = min(spec.values["evaluation"]["images"], len(pairs))
        samplers = {resolve(parse_sampler(wanted), translator): None for wanted in settings["samplers"]}
        for sampler in samplers:
            progress = Progress(f"sample {name} {sampler.name}", images, "image")
            tokens = _tokens(translator, pairs, images, sampler, settings, progress)
            write_tokens(session.work / sampler.name, tokens, {"run": name, "sampler": sampler.name})
            progress.close()
            session.record.rates[f"images_per_s {sampler.name}"] = progress.rate
        nfe = {
            sampler.name: translator.network_evaluations(
                num_inference_steps=sampler.steps,
                solver=sampler.solver,
                guidance_scale=settings["guidance_scale"],
            )
            for sampler in samplers
        }
        session.commit({"samplers": [sampler.name for sampler in samplers], "images": images, "nfe": nfe})


def _tokens(
    translator: Translator,
    pairs: PairedTokens,
    images: int,
    sampler: Sampler,
    settings: dict[str, float],
    progress: Progress,
) -> Iterator[NDArray[np.float32]]:
    batches = _sources(pairs, images)
    guidance = settings["guidance_scale"]
    for ids, tokens in sample(
        translator, batches, sampler, seed=int(settings["seed"]), guidance_scale=guidance
    ):
        progress.advance(len(ids))
        yield tokens.cpu().numpy()


def _sources(pairs: PairedTokens, images: int) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    for first in range(0, images, BATCH):
        ids = np.arange(first, min(first + BATCH, images))
        yield ids, pairs.batch(ids)[0]
