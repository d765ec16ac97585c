"""Stage `summary`: the metrics of all runs in one table, and the verdicts on the goals.

Writes `results/<experiment>/summary.json` and `verdicts.json`, whose form is stable. Rates are added to the copy that
people read and are no part of the tracked result.
"""

from __future__ import annotations

from typing import Any

from flowkit.evaluation.goals import experiment_goals
from flowkit.evaluation.verdicts import verdicts
from flowkit.progress import logger
from flowkit.provenance import read_json, write_json
from flowkit.stages.scores import join, rates
from flowkit.stages.session import Spec, committed, open_session

SUMMARY, VERDICTS = "summary.json", "verdicts.json"


def run(spec: Spec) -> None:
    """Commit the summary and put copies where people and programs look for them."""
    places, dataset, runs = spec.places, spec.target["dataset"], spec.target["runs"].split(",")
    with open_session(spec, places.summary, [places.evaluation(run) for run in runs]) as session:
        if not session.is_done:
            joined = join(spec, runs)
            goals = experiment_goals(joined.rows, spec.values["goals"])
            judged = verdicts(joined.rows, goals, data=dataset, differences=joined.differences)
            more = {"notes": joined.notes, "differences": joined.differences}
            write_json(session.work / SUMMARY, {**_document(spec, joined.rows), **more})
            write_json(session.work / VERDICTS, _document(spec, judged))
            session.commit({"rows": len(joined.rows), "goals": len(judged)})
        content, _ = committed(places.summary)
        summary, judged = read_json(content / SUMMARY), read_json(content / VERDICTS)["rows"]
        measured = [row for run in runs for row in rates(spec, run, dataset)]
        write_json(places.experiment_folder / SUMMARY, {**summary, "rows": summary["rows"] + measured})
        write_json(places.experiment_folder / VERDICTS, _document(spec, judged))
        for row in judged:
            logger.info(
                "verdict=%r goal=%r value=%s demand=%s",
                *(row[key] for key in ("verdict", "goal", "value", "demand")),
            )


def _document(spec: Spec, rows: list[Any]) -> dict[str, Any]:
    return {"schema": 1, "experiment": spec.places.experiment, "rows": rows}
