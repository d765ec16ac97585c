"""Stage `report`: the static pages, kept as a result and copied to `results/<experiment>/report/`.

The copy is what people open and what Snakemake's own report takes in; it is a declared output and may be emptied any
time, so nothing works inside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from flowkit.features.store import TokenStore
from flowkit.progress import logger
from flowkit.report.data import Picture, ReportInputs
from flowkit.report.site import build_site
from flowkit.shards.reader import Sample, decode_image, read_samples
from flowkit.stages.inputs import tar_of
from flowkit.stages.paired import open_pairs, stores_of
from flowkit.stages.session import Spec, committed, open_session


def run(spec: Spec) -> None:
    """Commit the pages of the experiment and put the copy in place."""
    places, dataset = spec.places, spec.target["dataset"]
    runs, trained = spec.target["runs"].split(","), spec.target["trained"].split(",")
    pairs_folder = places.pairs(dataset, spec.target["source"], spec.target["target"])
    inputs = [places.summary, *map(places.evaluation, runs), *map(places.train, trained), pairs_folder]
    with open_session(spec, places.site, inputs) as session:
        if not session.is_done:
            pages = session.work / "pages"
            files = build_site(_inputs(spec, runs, trained), pages)
            session.commit({"files": len(files)}, folder=pages)
        content, _ = committed(places.site)
        if places.report.exists():
            shutil.rmtree(places.report)
        shutil.copytree(content, places.report)
        logger.info("report=%s", places.report / "index.html")


def _inputs(spec: Spec, runs: Sequence[str], trained: Sequence[str]) -> ReportInputs:
    places, dataset, settings = spec.places, spec.target["dataset"], spec.values["report"]
    names = [_encoder_name(spec, dataset, spec.target[role]) for role in ("source", "target")]
    return ReportInputs(
        experiment=places.experiment_folder,
        title=settings["title"],
        # decided from what the stores say of their encoders, not from a setting
        demo=any(name.startswith("demo-") for name in names),
        source_encoder=names[0],
        target_encoder=names[1],
        pictures=Pictures(spec),
        gallery_images=settings["gallery_images"],
        questions=spec.values["questions"],
        defaults=spec.values["defaults"],
        train_artifacts={run: committed(places.train(run))[0].name for run in trained},
        evaluation_artifacts={run: committed(places.evaluation(run))[0].name for run in runs},
    )


def _encoder_name(spec: Spec, dataset: str, encoder_id: str) -> str:
    return str(TokenStore(stores_of(spec, dataset, encoder_id)[0]).attributes["encoder"])


class Pictures:
    """The evaluation images by their number, read from the source tars."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        pairs = open_pairs(spec, spec.target["dataset"], data={"layout": "patches", "source_tokens": "all"})
        _, manifest = committed(
            spec.places.pairs(spec.target["dataset"], spec.target["source"], spec.target["target"])
        )
        self.tars: list[str] = manifest["counts"]["tars"]
        self.tar_of_image = pairs.pairs["tar"].to_numpy()
        self.keys = pairs.samples()["key"].tolist()

    def __call__(self, indices: Sequence[int]) -> list[Picture]:
        """Return the pictures of these images, in this order; each tar is read once."""
        wanted: dict[str, set[str]] = {}
        for index in indices:
            wanted.setdefault(self.tars[self.tar_of_image[index]], set()).add(self.keys[index])
        found: dict[tuple[str, str], Sample] = {}
        for tar, keys in wanted.items():
            path, _ = tar_of(self.spec, self.spec.target["dataset"], tar)
            found |= {(tar, sample.key): sample for sample in _samples(path, keys)}
        chosen = (found[self.tars[self.tar_of_image[index]], self.keys[index]] for index in indices)
        return [
            Picture(decode_image(sample), sample.captions[0] if sample.captions else "") for sample in chosen
        ]


def _samples(tar: Path, keys: set[str]) -> list[Sample]:
    return [sample for sample in read_samples(tar) if isinstance(sample, Sample) and sample.key in keys]
