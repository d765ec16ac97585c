"""Stage `sample`: the evaluation set, translated by a trained run with each of its samplers.

    <sampler>/              a token store of the first sample of every image, under the keys of the images
    noise-<k>/<sampler>/    further samples of the first `noise_images` images, k = 1 .. noise_seeds - 1

What one sampler makes depends on no other one, so stores that are there already are taken over (kept_samples.py).
Where objects have several views, a record is an object, with the tokens of all its views; a translator that was trained
view by view is given one view at a time, each with noise of its own, and an evaluation of the network is one of a view.
A regression has one way to be sampled, whatever the configuration names. A regression and the mean of several samples
have no further samples, because noise does not change the one and hardly the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowkit.errors import ConfigError
from flowkit.features.loader import PairedTokens
from flowkit.features.samples import SampledTokens, by_view, whole_samples, write_tokens
from flowkit.paths import noise_folder
from flowkit.progress import Progress, logger
from flowkit.sampling.sampler import Sampler, Samples, parse_sampler, resolve, sample
from flowkit.stages.device import best_device
from flowkit.stages.evaluation_set import evaluation_count
from flowkit.stages.kept_samples import Cost, KeptSamples
from flowkit.stages.paired import open_pairs
from flowkit.stages.session import Session, Spec, committed, open_session, session_key
from flowkit.translator import Translator
from flowkit.view_keys import key_of_view

BATCH = 128
KEYS_NAMED = 5
"""Keys of refused samples that the warning names."""


def run(spec: Spec) -> None:
    """Commit the samples of `target.run` for the evaluation set."""
    dataset, name = spec.target["dataset"], spec.target["run"]
    folder = spec.places.samples(name, dataset)
    with open_session(spec, folder, _inputs(spec)) as session:
        if session.is_done:
            return
        settings = spec.values["sampling"]
        trained = committed(spec.places.train(name))[0]
        chosen = trained / "best" if settings["weights"] == "best" else trained
        translator = Translator.load(chosen).to(best_device())
        kept = KeptSamples(folder)
        counts = _sample_all(session, translator, open_pairs(spec, dataset), kept)
        work = session.work
        kept.moved(work, session.commit(counts))


def _sample_all(
    session: Session, translator: Translator, pairs: PairedTokens, kept: KeptSamples
) -> dict[str, Any]:
    """Write the stores of every sampler and noise seed that are not there yet; returns the counts of the manifest."""
    spec = session.spec
    settings, name = spec.values["sampling"], spec.target["run"]
    images = evaluation_count(spec, pairs)
    noise_images = min(settings["noise_images"] or images, images)
    parsed = [resolve(parse_sampler(wanted), translator) for wanted in settings["samplers"]]
    samplers = {sampler.name: sampler for sampler in parsed}
    keys = [str(key) for key in pairs.samples()["key"].iloc[:images]]
    nfe: dict[str, float] = {}
    refused: dict[str, list[str]] = {}
    for sampler in samplers.values():
        for number in range(_seeds(sampler, settings)):
            count = noise_images if number else images
            what = sampler.name if number == 0 else f"{sampler.name} noise {number}"
            store = session.work / noise_folder(number) / sampler.name
            key = _key_of(spec, sampler, number, count)
            if (cost := kept.take(key, store)) is None:
                progress = Progress(f"sample {name} {what}", count * pairs.views, "image")
                draw = _Draw(translator, pairs, keys[:count], sampler, number, settings, progress)
                attributes = {"run": name, "sampler": sampler.name, "noise_seed": number}
                write_tokens(store, draw.tokens(), attributes, keys=draw.keys)
                progress.close()
                cost = Cost(evaluations=draw.evaluations / draw.inputs, images_per_s=progress.rate)
                kept.add(key, store, cost)
            if found := SampledTokens(store).refused_keys:
                refused[what] = found
            if number == 0:
                nfe[sampler.name] = cost["evaluations"]
                session.record.rates[f"images_per_s {sampler.name}"] = cost["images_per_s"]
    _warn(name, refused)
    return {
        "samplers": list(samplers),
        "images": images,
        "nfe": nfe,
        "noise": {sampler.name: _seeds(sampler, settings) for sampler in samplers.values()},
        "noise_images": noise_images,
    }


def _key_of(spec: Spec, sampler: Sampler, number: int, count: int) -> str:
    """Return the digest of all that the samples of one sampler and noise seed are made from."""
    others = ("samplers", "noise_seeds", "noise_images")
    sampling = {name: value for name, value in spec.values["sampling"].items() if name not in others}
    values = {**spec.values, "sampling": sampling, "evaluation": {"images": count}}
    return session_key(replace(spec, values=values), _inputs(spec), [sampler.name, str(number)])


def _inputs(spec: Spec) -> list[Path]:
    dataset, name = spec.target["dataset"], spec.target["run"]
    return [spec.places.train(name), spec.places.pairs(dataset, spec.target["source"], spec.target["target"])]


def _seeds(sampler: Sampler, settings: dict[str, Any]) -> int:
    """Return how many noise seeds a sampler is run with."""
    return int(settings["noise_seeds"]) if sampler.has_spread else 1


def _warn(name: str, refused: dict[str, list[str]]) -> None:
    if not refused:
        return
    keys = list(dict.fromkeys(key for found in refused.values() for key in found))
    logger.warning(
        "run=%s samples_not_finite=%d of %d images with %s, the first are %s; they are in the rejects tables, and the "
        "run may have diverged: lower its learning rate or guidance",
        name,
        sum(map(len, refused.values())),
        len(keys),
        ", ".join(refused),
        ", ".join(keys[:KEYS_NAMED]),
    )


@dataclass
class _Draw:
    """One sample of each of the first images, or objects of several views, by one sampler, made batch by batch."""

    translator: Translator
    pairs: PairedTokens
    keys: list[str]
    sampler: Sampler
    number: int
    settings: dict[str, Any]
    progress: Progress
    evaluations: int = field(default=0, init=False)
    """Network evaluations so far, over all inputs."""

    @property
    def parts(self) -> int:
        """Inputs of the network that make one sample: the views, where it was trained on single ones."""
        views, of_network = self.pairs.views, self.translator.config.views
        if views % of_network:
            raise ConfigError(
                f"the run translates {of_network} views together, {self.pairs.views} make a sample of the data set; "
                "train it on this number of views"
            )
        return views // of_network

    @property
    def inputs(self) -> int:
        """Inputs of the network for all keys."""
        return len(self.keys) * self.parts

    def tokens(self) -> Iterator[NDArray[np.float32]]:
        """Yield tokens [B, T, C] of whole samples at raw scale."""
        return whole_samples(self._of_inputs(), self.parts)

    def _of_inputs(self) -> Iterator[NDArray[np.float32]]:
        for made in self._samples():
            self.evaluations += made.evaluations
            self.progress.advance(len(made.keys) * self.translator.config.views)
            yield made.tokens_BTC.cpu().numpy()

    def _samples(self) -> Iterator[Samples]:
        return sample(
            self.translator,
            self._sources(),
            self.sampler,
            seed=int(self.settings["seed"]),
            guidance_scale=self.settings["guidance_scale"],
            draw=self.number,
        )

    def _sources(self) -> Iterator[tuple[list[str], torch.Tensor]]:
        source, parts = self.pairs.source(), self.parts
        batch = max(1, BATCH // self.pairs.views)
        for first in range(0, len(self.keys), batch):
            keys = self.keys[first : first + batch]
            tokens = by_view(source[first : first + len(keys)], parts)
            if parts > 1:
                keys = [key_of_view(key, view) for key in keys for view in range(parts)]
            yield keys, torch.from_numpy(tokens)
