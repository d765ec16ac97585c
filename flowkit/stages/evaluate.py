"""Stage `evaluate`: every metric of every sampler of a run, or of all baselines, and the arrays that the report draws.

scores.json             {sampler: rows of metric, value, low, high}
notes.json              {sampler: why some metrics were not measured, or on what}
details-<sampler>.npz   figures without each tenth of the images, per image, per position and for a gallery; no file
                        where nothing could be measured
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from flowkit.encoders.head import apply_head
from flowkit.evaluation.collected import Embed, collect_true
from flowkit.evaluation.details import per_image
from flowkit.evaluation.differences import WITHOUT
from flowkit.evaluation.downstream import Downstream
from flowkit.evaluation.notes import KEYS_IN_A_NOTE, Note
from flowkit.evaluation.retrieval import Captions
from flowkit.evaluation.score import METRICS, Classes, MetricRow, Scored, Texts, metrics_of, not_scored, score
from flowkit.evaluation.tokens import Floats, evenly_spaced, mean_over_images
from flowkit.evaluation.zero_shot import class_table
from flowkit.export.prior_files import prior_digest
from flowkit.export.shap_e_prior import ShapEPrior
from flowkit.features.samples import Samples, by_view, open_samples
from flowkit.paths import CLOSED_FORM, HEAD, NOTES, SCORES, TEXT_EMBEDDINGS, TEXTS, noise_folder
from flowkit.progress import Progress, logger
from flowkit.provenance import read_json, write_json
from flowkit.stages.classes import image_class_names
from flowkit.stages.device import best_device
from flowkit.stages.evaluation_set import evaluation_count
from flowkit.stages.paired import open_pairs, open_training_pairs
from flowkit.stages.sample_keys import demand_all_keys, demand_same_keys
from flowkit.stages.session import Session, Spec, committed, open_session

DETERMINISTIC = (CLOSED_FORM, "direct-1")


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

    consumer = spec.values["evaluation"]["consumer"]
    judge = [] if consumer is None else [prior_digest(consumer)]

    @cache
    def truth() -> Truth:
        return Truth(spec)

    for name in spec.target["runs"].split(","):
        one = replace(spec, target={**spec.target, "runs": name})
        samples = spec.places.samples(name, dataset)
        with open_session(one, spec.places.evaluation(name), [samples, *shared], judge) as session:
            if not session.is_done:
                _evaluate(session, name, samples, truth())


def _evaluate(session: Session, name: str, samples: Path, truth: Truth) -> None:
    content, manifest = committed(samples)
    counts = manifest["counts"]
    scores: dict[str, list[MetricRow]] = {}
    notes: dict[str, list[Note]] = {}
    progress = Progress(f"evaluate {name}", len(counts["samplers"]), "sampler")
    for sampler in counts["samplers"]:
        sets = [open_samples(content / noise_folder(k) / sampler) for k in range(counts["noise"][sampler])]
        rows, notes[sampler], found = scores_of(
            sampler, sets, truth.keys, score=truth.score, metrics=metrics_of(truth.downstream)
        )
        scores[sampler] = rows + _cost_rows(counts, sampler)
        if found is not None:
            np.savez(session.work / f"details-{sampler}.npz", **truth.details(sets[0], found))
        for note in notes[sampler]:
            logger.info(
                "run=%s sampler=%s metrics=%s note=%r", name, sampler, len(note["metrics"]), note["note"]
            )
        progress.advance()
    progress.close()
    write_json(session.work / SCORES, scores)
    write_json(session.work / NOTES, notes)
    session.commit({"samplers": counts["samplers"], "images": len(truth.keys)})


def scores_of(
    sampler: str,
    sets: Sequence[Samples],
    keys: Sequence[str],
    score: Callable[..., Scored],
    metrics: Sequence[str] = METRICS,
) -> tuple[list[MetricRow], list[Note], Scored | None]:
    """Return rows, notes and, where something was measured, all of the score of a sampler's sets, one per noise seed.

    `keys` are those of the evaluation's images. Samples that were refused when they were written are counted and named;
    then nothing is measured.
    """
    demand_all_keys(keys, sets[0], sampler)
    for samples in sets[1:]:
        demand_same_keys(keys, samples, sampler)
    if refused := [key for samples in sets for key in samples.refused_keys]:
        logger.warning("sampler=%s refused=%d first=%s", sampler, len(refused), refused[0])
        cure = "" if sampler == CLOSED_FORM else ": the run has diverged, lower its learning rate or guidance"
        rows, notes = not_scored(
            f"{len(refused)} of {sum(map(len, sets)) + len(refused)} samples are not finite or beyond float16, first "
            f"{', '.join(refused[:KEYS_IN_A_NOTE])}{cure}",
            metrics,
        )
        return rows, notes, None
    found = score(sets[0], sets[1:], is_deterministic=sampler in DETERMINISTIC)
    return found.rows, found.notes, found if found.collected.finite_N.all() else None


class Truth:
    """What predictions are compared with: true tokens, the training mean, embeddings, captions and classes."""

    def __init__(self, spec: Spec) -> None:
        self.settings = spec.values["evaluation"]
        dataset, train, target_id = spec.target["dataset"], spec.target["train"], spec.target["target"]
        pairs = open_pairs(spec, dataset)
        count = evaluation_count(spec, pairs)
        samples = pairs.samples().iloc[:count]
        self.keys = samples["key"].tolist()
        training = open_training_pairs(spec, train)
        chosen = evenly_spaced(len(training), spec.values["closed_forms"]["images"])
        self.side = collect_true(
            pairs.target(np.arange(count)),
            mean_over_images(training.target(chosen)),
            embedding_of(
                spec.values["data"]["layout"], committed(spec.places.head(target_id))[0], pairs.views
            ),
        )
        self.views = pairs.views
        self.downstream = self._judge(spec.values["data"]["layout"])
        texts, _ = committed(spec.places.texts(dataset, target_id))
        kind = spec.values["datasets"][dataset]["kind"]
        self.texts = texts_of(texts, kind, samples["captions"].tolist(), samples["attributes_json"].tolist())

    def _judge(self, layout: str) -> Downstream | None:
        """The consumer that translations are tried on, None where the configuration names none."""
        if (consumer := self.settings["consumer"]) is None:
            return None
        prior = ShapEPrior(consumer, best_device())
        return Downstream(
            prior.distances,
            self.side.tokens,
            self.keys,
            has_class_token=layout == "cls_patches",
            seed=self.settings["seed"],
            views=self.views,
        )

    def score(self, predicted: Samples, noise: Sequence[Samples], *, is_deterministic: bool) -> Scored:
        """Return the metric rows of one sampler, with notes."""
        return score(
            predicted,
            self.side,
            texts=self.texts,
            noise=noise,
            is_deterministic=is_deterministic,
            keys=self.keys,
            downstream=self.downstream,
            draws=self.settings["bootstrap_draws"],
            seed=self.settings["seed"],
        )

    def details(self, predicted: Samples, found: Scored) -> dict[str, Any]:
        """Return the arrays that the report draws."""
        seed = self.settings["seed"]
        arrays = per_image(predicted, found.collected, self.side, captions=self.texts.captions, seed=seed)
        arrays["views"] = np.array(self.views)
        return arrays | {WITHOUT + metric: values for metric, values in found.without.items()}


def embedding_of(layout: str, head_folder: Path, views: int = 1) -> Embed | None:
    """Return how tokens of a layout become image embeddings; without a class token they do not.

    The embedding of an object with several views is the mean of the normalised embeddings of its views.
    """
    if layout == "patches":
        return None
    head = {} if layout == "pooled" else load_file(head_folder / HEAD)

    def embed(tokens_NTD: Floats) -> Floats:
        if layout == "pooled":
            return tokens_NTD[:, 0]
        return apply_head(torch.from_numpy(np.asarray(tokens_NTD, np.float32)), head).numpy()

    def embed_views(tokens_NTD: Floats) -> Floats:
        of_views = embed(by_view(np.asarray(tokens_NTD, np.float32), views))
        length = np.linalg.norm(of_views, axis=1, keepdims=True)
        of_views = of_views / np.maximum(length, np.finfo(np.float32).tiny)
        return of_views.reshape(len(tokens_NTD), views, -1).mean(axis=1)

    return embed if views == 1 else embed_views


def _cost_rows(counts: dict[str, Any], sampler: str) -> list[MetricRow]:
    return [MetricRow(metric="nfe", value=float(counts["nfe"][sampler]), low=None, high=None)]


def texts_of(
    folder: Path,
    kind: str,
    captions_of_images: Sequence[Sequence[str]],
    attributes_of_images: Sequence[str | None],
) -> Texts:
    """Return captions and classes of the judged images of a data set of this kind; no classes where it has none."""
    embeddings = load_file(folder / TEXT_EMBEDDINGS)
    texts = read_json(folder / TEXTS)
    row_of = {text: row for row, text in enumerate(texts["captions"])}
    owned = [(image, text) for image, captions in enumerate(captions_of_images) for text in captions]
    captions = Captions(
        embeddings["captions"].numpy()[[row_of[text] for _, text in owned]],
        [text for _, text in owned],
        np.array([image for image, _ in owned], dtype=np.int64),
    )
    if not texts["classes"]:
        return Texts(captions)
    number = {name: row for row, name in enumerate(texts["classes"])}
    class_names = image_class_names(kind, attributes_of_images)
    table = class_table([[number[name] for name in names] for names in class_names], len(number))
    return Texts(captions, Classes(embeddings["prompts"].numpy(), table))
