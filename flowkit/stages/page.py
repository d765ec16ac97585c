"""Stage `page`: the page of a run with its figures, thumbnails and error maps, kept until something on it changes.

It reads the run itself and the few others that stand beside it, so a change of any other run makes nothing here again.
Stage `report` puts the pages of all runs together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from flowkit.features.store import TokenStore
from flowkit.paths import MANIFEST, converted
from flowkit.progress import Progress
from flowkit.report.data import Results, parse_results, read_all_details, read_run
from flowkit.report.gallery import error_limit
from flowkit.report.rendering import Facts
from flowkit.report.run_page import RunPage, render_run
from flowkit.report.site import write_files
from flowkit.stages.paired import stores_of
from flowkit.stages.pictures import Pictures
from flowkit.stages.scores import join, rates
from flowkit.stages.session import Spec, committed, open_session

SCALE = "ridge"
"""The run whose errors set the colour scale of all error maps."""


def run(spec: Spec) -> None:
    """Commit the page of every run in `target.runs` that is not there yet."""
    places, names = spec.places, spec.target["runs"].split(",")
    pairs = places.pairs(spec.target["dataset"], spec.target["source"], spec.target["target"])
    pictures: Pictures | None = None
    progress = Progress("page", len(names), "run")
    for name in names:
        others = [
            other
            for other in _names(spec, "beside") + _names(spec, "seeds")
            if other != name and (places.evaluation(other) / MANIFEST).is_file()
        ]
        inputs = [pairs, *map(places.evaluation, (name, *others))]
        inputs += [places.train(name)] if spec.target["kind"] == "trained" else []
        one = replace(spec, target={**spec.target, "runs": name})
        with open_session(one, places.page(name), inputs) as session:
            if not session.is_done:
                pictures = pictures or Pictures(spec)
                files = render_run(_page(spec, name, others, pictures))
                write_files(files, session.work / "page")
                session.commit({"files": len(files)}, folder=session.work / "page")
        progress.advance()
    progress.close()


def facts_of(spec: Spec) -> Facts:
    """Return what stands on top of every page; whether it is a demo is what the stores say of their encoders."""
    source, target = (_encoder_name(spec, spec.target[role]) for role in ("source", "target"))
    is_demo = any(name.startswith("demo-") for name in (source, target))
    return Facts(spec.places.experiment, spec.values["report"]["title"], source, target, is_demo=is_demo)


def _page(spec: Spec, name: str, others: Sequence[str], pictures: Pictures) -> RunPage:
    places = spec.places
    train = committed(places.train(name))[0].name if spec.target["kind"] == "trained" else None
    files = read_run(
        places.evaluation(name).parent,
        train=train,
        evaluation=committed(places.evaluation(name))[0].name,
        dataset=spec.target["dataset"],
    )
    scaled = name if name == SCALE else SCALE if SCALE in others else None
    details = read_all_details(committed(places.evaluation(scaled))[0]) if scaled else {}
    return RunPage(
        evaluation=committed(places.evaluation(name))[0].name,
        scale_of=scaled or "",
        facts=facts_of(spec),
        run=files,
        results=_results(spec, name, others),
        error_limit=error_limit(next(iter(details.values()), None)),
        pictures=pictures,
        gallery_images=spec.values["report"]["gallery_images"],
        question=spec.values["questions"].get(name, ""),
        seeds=_names(spec, "seeds"),
        defaults=spec.values["defaults"],
    )


def _results(spec: Spec, name: str, others: Sequence[str]) -> Results:
    runs, dataset = [name, *others], spec.target["dataset"]
    joined = join(spec, runs, of=name)
    rows = [*joined.rows, *(row for run in runs for row in rates(spec, run, dataset))]
    document = {**asdict(joined), "rows": rows}
    return parse_results(spec.places.experiment, document, [], spec.places.evaluation(name))


def _names(spec: Spec, key: str) -> list[str]:
    return [name for name in spec.target[key].split(",") if name]


def _encoder_name(spec: Spec, encoder_id: str) -> str:
    """Return the name in the stores of an encoder, or the one in its folder's name where nothing was encoded yet."""
    dataset = spec.target["dataset"]
    pairs = spec.places.pairs(dataset, spec.target["source"], spec.target["target"])
    if not (pairs / MANIFEST).is_file():
        return encoder_id.removesuffix(converted("")).rpartition("-")[0]
    return str(TokenStore(stores_of(spec, dataset, encoder_id)[0]).attributes["encoder"])
