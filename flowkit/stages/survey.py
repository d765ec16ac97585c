"""Stage `survey`: what the data look like before anything is trained on them.

Counts and refused images of every tar; channels and norms of the tokens of evenly spaced images of the training and of
the evaluated pairs; and, for every evaluated image, the most similar training image. It reads nothing that training
makes, and nothing waits for it but the report. Tars are looked into for thumbnails alone, where they still are.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from flowkit.evaluation.survey import known, rounded
from flowkit.evaluation.tokens import Array
from flowkit.provenance import write_json
from flowkit.report import survey as records
from flowkit.report.survey import ROLES, match_array
from flowkit.stages.matches import Place, Search, Side, search
from flowkit.stages.paired import indexed_stores, open_pairs
from flowkit.stages.refused import Refusals, RefusedImage, read_stores
from flowkit.stages.session import Spec, committed, open_session
from flowkit.stages.thumbnails import Wanted, write_thumbnails
from flowkit.stages.token_figures import channel_arrays, channel_summaries, look_at, norm_histograms

SIMILAR_PAIRS = 12


def run(spec: Spec) -> None:
    """Commit what was found, its arrays, the table of matches, and thumbnails."""
    datasets = (spec.target["train"], spec.target["dataset"])
    folders = [spec.places.pairs(name, spec.target["source"], spec.target["target"]) for name in datasets]
    with open_session(spec, spec.places.survey, folders) as session:
        if session.is_done:
            return
        found, arrays = _survey(spec, session.work)
        write_json(session.work / records.SURVEY_FILE, asdict(found))
        np.savez(session.work / records.ARRAYS_FILE, **arrays)  # type: ignore[arg-type]
        session.commit({"refused": sum(dataset.refused for dataset in found.datasets)})


def _survey(spec: Spec, work: Path) -> tuple[records.Findings, dict[str, Array]]:
    layout, refusals = spec.values["data"]["layout"], Refusals()
    sides = {"training": _open_training(spec), "evaluation": _open_evaluation(spec)}
    counts = [_count(spec, use, side, refusals) for use, side in sides.items()]
    looks = {(role, use): look_at(side, role, layout) for role in ROLES for use, side in sides.items()}
    norms, histograms = norm_histograms(looks)
    searched = search(sides["training"], sides["evaluation"])
    _write_matches(work / records.MATCHES_FILE, searched)
    examples, pairs = refusals.examples(), _most_similar(searched)
    wanted = [_wanted_refused(at, image) for at, image in enumerate(examples)]
    wanted += [one for at, number in enumerate(pairs) for one in _wanted_pair(sides, searched, at, number)]
    thumbnails = write_thumbnails(spec, wanted, work / records.THUMBNAILS)
    found = records.Findings(
        schema=records.SCHEMA,
        layout=layout,
        datasets=counts,
        refused=refusals.table(),
        examples=[_refused(at, image, thumbnails) for at, image in enumerate(examples)],
        channels=channel_summaries(looks),
        norms=norms,
        matches=_matches(searched, pairs, thumbnails),
    )
    return found, channel_arrays(looks) | histograms | _match_arrays(searched)


def _open_training(spec: Spec) -> Side:
    """Return the pairs that training reads."""
    held_out = slice(0, -spec.values["data"]["validation_shards"])
    return _open(spec, spec.target["train"], held_out, None)


def _open_evaluation(spec: Spec) -> Side:
    """Return the pairs that are evaluated: the first ones, and fewer than asked for where there are no more."""
    return _open(spec, spec.target["dataset"], slice(None), spec.values["evaluation"]["images"])


def _open(spec: Spec, dataset: str, tars: slice, at_most: int | None) -> Side:
    _, manifest = committed(spec.places.pairs(dataset, spec.target["source"], spec.target["target"]))
    data = {"layout": spec.values["data"]["layout"], "source_tokens": "all"}
    pairs = open_pairs(spec, dataset, tars=tars, data=data)
    stores = indexed_stores(spec, dataset, spec.target["target"])
    images = len(pairs) if at_most is None else min(len(pairs), at_most)
    return Side(dataset, pairs, images, stores, manifest["counts"]["tars"])


def _count(spec: Spec, use: str, side: Side, refusals: Refusals) -> records.DatasetCount:
    _, manifest = committed(spec.places.pairs(side.dataset, spec.target["source"], spec.target["target"]))
    counts, stores = manifest["counts"], read_stores(spec, side.dataset, side.tars, refusals)
    is_trained = use == "training"
    return records.DatasetCount(
        name=side.dataset,
        kind=spec.values["datasets"][side.dataset]["kind"],
        use=use,
        tars=len(side.tars),
        held_out_tars=spec.values["data"]["validation_shards"] if is_trained else 0,
        limit=stores.limit,
        encoders=stores.encoders,
        refused=stores.refused,
        pairs=counts["pairs"],
        held_out_pairs=counts["pairs"] - side.images if is_trained else 0,
        evaluated=0 if is_trained else side.images,
        fell_out=counts["fell_out"],
    )


def _wanted_refused(at: int, image: RefusedImage) -> Wanted:
    return Wanted(image.dataset, image.tar, image.index, image.key, f"refused-{at:02d}")


def _refused(at: int, image: RefusedImage, thumbnails: Mapping[str, records.Thumbnail]) -> records.Refused:
    return records.Refused(
        image.dataset, image.tar, image.key, image.reasons, thumbnails[_wanted_refused(at, image).name]
    )


def _most_similar(searched: Search) -> list[int]:
    """Return the numbers of the evaluated images that are most like a training image."""
    if searched.cosines is None:
        return []
    order = np.argsort(-rounded(searched.cosines.training), kind="stable")
    return [int(number) for number in order[:SIMILAR_PAIRS]]


def _wanted_pair(sides: Mapping[str, Side], searched: Search, at: int, number: int) -> Iterator[Wanted]:
    assert searched.cosines is not None
    places = {"training": searched.cosines.places[number], "evaluation": searched.evaluated[number]}
    for use, place in places.items():
        yield Wanted(sides[use].dataset, place.tar, place.index, place.key, f"pair-{at:02d}-{use}")


def _matches(
    searched: Search, pairs: Sequence[int], thumbnails: Mapping[str, records.Thumbnail]
) -> records.Matches:
    found = records.Matches(
        reason=searched.reason,
        evaluated=len(searched.evaluated),
        training=searched.training,
        as_many=searched.as_many,
        same_file=searched.same_file,
    )
    cosines = searched.cosines
    if cosines is None:
        return found
    looked = [rounded(one) for one in (cosines.training, cosines.as_many, cosines.within)]
    above = [
        records.Above(cosine, *(int((values > cosine).sum()) for values in looked))
        for cosine in records.THRESHOLDS
    ]
    similar = []
    for at, number in enumerate(pairs):
        evaluated, training = searched.evaluated[number], cosines.places[number]
        similar.append(
            records.SimilarPair(
                cosine=float(looked[0][number]),
                within=known(cosines.within[number]),
                is_same_file=training.digest is not None and training.digest == evaluated.digest,
                evaluation=_found(evaluated, thumbnails[f"pair-{at:02d}-evaluation"]),
                training=_found(training, thumbnails[f"pair-{at:02d}-training"]),
            )
        )
    return replace(found, above=above, pairs=similar)


def _found(place: Place, thumbnail: records.Thumbnail) -> records.Found:
    return records.Found(place.tar, place.key, place.caption, thumbnail)


def _match_arrays(searched: Search) -> dict[str, Array]:
    cosines = searched.cosines
    if cosines is None:
        return {}
    found = (cosines.training, cosines.as_many, cosines.within)
    return {match_array(name): rounded(values) for name, values in zip(records.SEARCHED, found, strict=True)}


def _write_matches(path: Path, searched: Search) -> None:
    """Write a line per evaluated image; the columns of its match are missing where nothing was compared."""
    cosines = searched.cosines
    head = ["tar", "key"]
    head += ["cosine", "training_tar", "training_key", "same_file", "cosine_within"] if cosines else []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for number, place in enumerate(searched.evaluated):
            line: list[object] = [place.tar, place.key]
            if cosines is not None:
                match = cosines.places[number]
                is_same = match.digest is not None and match.digest == place.digest
                line += [
                    known(cosines.training[number]),
                    match.tar,
                    match.key,
                    int(is_same),
                    known(cosines.within[number]),
                ]
            writer.writerow(line)
