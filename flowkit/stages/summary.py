"""Stage `summary`: the metrics of all runs in one table, and the verdicts on the goals.

Writes `results/<experiment>/summary.json` and `verdicts.json`, whose form is stable.
"""

from __future__ import annotations

from flowkit.evaluation.summary import RunScore, summary_rows
from flowkit.evaluation.goals import experiment_goals
from flowkit.evaluation.verdicts import verdicts
from flowkit.progress import logger
from flowkit.provenance import read_json, write_json
from flowkit.stages.evaluate import SCORES
from flowkit.stages.session import Spec, committed, open_session

SUMMARY, VERDICTS = "summary.json", "verdicts.json"


def run(spec: Spec) -> None:
    """Commit the summary and put copies where people and programs look for them."""
    runs, dataset = spec.target["runs"].split(","), spec.target["dataset"]
    with open_session(spec, spec.places.summary, [spec.places.evaluation(run) for run in runs]) as session:
        if not session.is_done:
            scores = [
                RunScore(run, sampler, dataset, rows)
                for run in runs
                for sampler, rows in read_json(committed(spec.places.evaluation(run))[0] / SCORES).items()
            ]
            rows = summary_rows(scores)
            judged = verdicts(rows, experiment_goals(rows, spec.values["goals"]), data=dataset)
            form = {"schema": 1, "experiment": spec.places.experiment}
            write_json(session.work / SUMMARY, {**form, "rows": rows})
            write_json(session.work / VERDICTS, {**form, "rows": judged})
            session.commit({"rows": len(rows), "goals": len(judged)})
        content, _ = committed(spec.places.summary)
        for name in (SUMMARY, VERDICTS):
            write_json(spec.places.experiment_folder / name, read_json(content / name))
        for row in read_json(content / VERDICTS)["rows"]:
            logger.info("goal=%r verdict=%r value=%s demand=%s", row["goal"], row["verdict"], row["value"], row["demand"])
