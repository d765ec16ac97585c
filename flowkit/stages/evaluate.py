"""Stage `evaluate`: every metric of every sampler of a run, or of all baselines, and the arrays that the report draws.

scores.json             {sampler: rows of metric, value, low, high}
details-<sampler>.npz   figures per image, per position and for a gallery
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from flowkit.encoders.head import apply_head
from flowkit.errors import ConfigError, StoreError
from flowkit.evaluation.details import per_image
from flowkit.evaluation.metrics import mean_over_images
from flowkit.evaluation.retrieval import Captions
from flowkit.evaluation.score import Classes, score
from flowkit.evaluation.zero_shot import class_table
from flowkit.features.loader import PairedTokens
from flowkit.features.store import TokenStore
from flowkit.paths import HEAD, SCORES, TEXT_EMBEDDINGS, TEXTS
from flowkit.progress import Progress
from flowkit.provenance import read_json, write_json
from flowkit.stages.paired import open_pairs, open_training_pairs
from flowkit.stages.session import Session, Spec, committed, open_session

Floats = NDArray[np.float32]


def run(spec: Spec) -> None:
    """Commit scores and details of every run in `target.runs` that is not there yet."""
    dataset, train = spec.target["dataset"], spec.target["train"]
    source_id, target_id = spec.target["source"], spec.target["target"]
    shared = [
        spec.places.pairs(train, source_id, target_id),
        spec.places.pairs(dataset, source_id, target_id),
        spec.places.head(target_id),
        spec.places.texts(dataset, target_id),
    ]

    @cache
    def truth() -> Truth:
        return Truth(spec)

    for name in spec.target["runs"].split(","):
        one = replace(spec, target={**spec.target, "runs": name})
        samples = spec.places.samples(name, dataset)
        with open_session(one, spec.places.evaluation(name), [samples, *shared]) as session:
            if not session.is_done:
                _evaluate(session, name, samples, truth())


def _evaluate(session: Session, name: str, samples: Path, truth: Truth) -> None:
    content, manifest = committed(samples)
    samplers = manifest["counts"]["samplers"]
    scores: dict[str, Any] = {}
    progress = Progress(f"evaluate {name}", len(samplers), "sampler")
    for sampler in samplers:
        predicted = _read_samples(content / sampler)
        scores[sampler] = truth.score(predicted) + _cost_rows(manifest, sampler)
        np.savez(session.work / f"details-{sampler}.npz", **truth.details(predicted))
        progress.advance()
    progress.close()
    write_json(session.work / SCORES, scores)
    session.commit({"samplers": samplers, "images": len(truth.target_NTD)})


class Truth:
    """What predictions are compared with: true tokens, the training mean, embeddings, captions and classes."""

    def __init__(self, spec: Spec) -> None:
        self.settings, data = spec.values["evaluation"], spec.values["data"]
        dataset, train, target_id = spec.target["dataset"], spec.target["train"], spec.target["target"]
        pairs = open_pairs(spec, dataset)
        count = self.settings["images"]
        if len(pairs) < count:
            raise ConfigError(
                f"evaluation.images={count}: {dataset} has {len(pairs)} pairs, lower it or add images"
            )
        _, target = pairs.batch(np.arange(len(pairs)))
        self.target_NTD: Floats = target[:count].numpy()
        self.disjoint_NTD: Floats | None = target[count:].numpy() if len(pairs) >= 2 * count else None
        training = open_training_pairs(spec, train)
        self.mean_TD = mean_over_images(training.batch(np.arange(len(training)))[1].numpy())
        self.has_cls = data["layout"] == "cls_patches"
        self.head = load_file(committed(spec.places.head(target_id))[0] / HEAD)
        texts, _ = committed(spec.places.texts(dataset, target_id))
        self.captions, self.classes = _texts(texts, pairs, count)
        self.target_pooled_NP = self._pooled(self.target_NTD)

    def score(self, predicted_NTD: Floats) -> list[Any]:
        """Return the metric rows of one sampler."""
        return list(
            score(
                predicted_NTD,
                self.target_NTD,
                self.mean_TD,
                predicted_pooled_NP=self._pooled(predicted_NTD),
                target_pooled_NP=self.target_pooled_NP,
                captions=self.captions,
                classes=self.classes,
                disjoint_target_NTD=self.disjoint_NTD,
                draws=self.settings["bootstrap_draws"],
                seed=self.settings["seed"],
            )
        )

    def details(self, predicted_NTD: Floats) -> dict[str, Any]:
        """Return the arrays that the report draws."""
        return per_image(
            predicted_NTD,
            self.target_NTD,
            self.mean_TD,
            predicted_pooled_NP=self._pooled(predicted_NTD),
            target_pooled_NP=self.target_pooled_NP,
            captions=self.captions,
            seed=self.settings["seed"],
        )

    def _pooled(self, tokens_NTD: Floats) -> Floats | None:
        """Return embeddings by the target's own head; without a class token there are none."""
        return apply_head(torch.from_numpy(tokens_NTD), self.head).numpy() if self.has_cls else None


def _read_samples(folder: Path) -> Floats:
    """Return the predicted tokens, one row per image; a sample that was refused would shift all rows after it."""
    store = TokenStore(folder)
    if refused := len(store.rejects):
        raise StoreError(
            f"{folder}: {refused} of {refused + len(store)} samples are not finite or beyond float16, the first is "
            f"number {store.rejects['index'].iloc[0]}; the run has diverged, lower its learning rate or guidance"
        )
    return store.read_tokens(range(len(store))).astype(np.float32)


def _cost_rows(manifest: dict[str, Any], sampler: str) -> list[dict[str, Any]]:
    nfe = manifest["counts"]["nfe"][sampler]
    return [{"metric": "nfe", "value": float(nfe), "low": None, "high": None}]


def _texts(folder: Path, pairs: PairedTokens, count: int) -> tuple[Captions, Classes | None]:
    """Return captions and classes of the first `count` pairs."""
    embeddings = load_file(folder / TEXT_EMBEDDINGS)
    texts = read_json(folder / TEXTS)
    row_of = {text: row for row, text in enumerate(texts["captions"])}
    samples = pairs.samples().iloc[:count]
    owned = [(image, text) for image, captions in enumerate(samples["captions"]) for text in captions]
    captions = Captions(
        embeddings["captions"].numpy()[[row_of[text] for _, text in owned]],
        [text for _, text in owned],
        np.array([image for image, _ in owned], dtype=np.int64),
    )
    if not texts["classes"]:
        return captions, None
    from flowkit.shards.demo_shapes import image_classes

    number = {name: row for row, name in enumerate(texts["classes"])}
    named = [image_classes(json.loads(text)) for text in samples["attributes_json"]]
    # with two objects a prompt can join the colour of one with the shape of the other: one-object images are judged
    classes = [[number[name] for name in names] if len(names) == 1 else [] for names in named]
    return captions, Classes(embeddings["prompts"].numpy(), class_table(classes, len(number)))
