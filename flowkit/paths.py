"""Where everything lies: the one place that knows folder and file names.

    <data_root>/listings/<owner>--<name>@<revision>.json   tars of a hub repository, pinned to a commit
    <data_root>/archives/<dataset>/                    zip files that a data set is made from
    <data_root>/shards/<dataset>/                      source tars; those of a hub lie in folders <tar>/ of their own
    <data_root>/weights/<encoder id>/                  encoder weights
    <data_root>/features/<dataset>/<encoder id>/<tar>/ token store of one tar; <encoder id>-int8 where it was converted
    <data_root>/features/<dataset>/pairs-<a>-<b>/      row pairs of two encoders
    <data_root>/heads/<encoder id>/                    final norm and projection of the target
    <data_root>/texts/<dataset>/<encoder id>/          caption and class prompt embeddings
    <results>/<experiment>/runs/<run>/                 train/, samples/<dataset>/, evaluation/, export/, page/
    <results>/<experiment>/                            survey/, summary/, site/, report/, key-figures/, logs/,
                                                       summary.json, verdicts.json
    <results>/index.html                               all experiments that have a report

Below `data_root` all experiments share; an encoder id is its name and a digest of its settings. Each of these folders
is a result: `manifest.json` (the edge that Snakemake tracks), `run.json` (for people), `state/` (partial work, lock).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
RUN_RECORD = "run.json"
SCORES = "scores.json"
NOTES = "notes.json"
CLOSED_FORM = "closed-form"
"""What runs without a sampler call theirs."""
LOCATION = "location.json"
"""Names the place of files that stay where the user has them; it is of one machine, so it is untracked."""
PAIRS = "pairs.parquet"
HEAD = "head.safetensors"
TEXT_EMBEDDINGS = "texts.safetensors"
TEXTS = "texts.json"
REPORT = "report"
FIRST_PAGE = "index.html"


def noise_folder(number: int) -> str:
    """Return where, below the samples of a run, those of a noise seed lie; the first seed's lie on top."""
    return f"noise-{number}" if number else "."


def converted(encoder_id: str) -> str:
    """Return the folder name of an encoder's stores after their conversion to int8."""
    return f"{encoder_id}-int8"


def report_folders(results: Path) -> list[Path]:
    """Return the reports below a folder of results, by the names of their experiments.

    Links are left out: what lies behind one may be no result at all. So are folders that others may not read.
    """
    found = [folder / REPORT for folder in sorted(results.glob("[!.]*")) if not folder.is_symlink()]
    return [report for report in found if os.path.isfile(report / FIRST_PAGE) and not report.is_symlink()]


@dataclass(frozen=True)
class Places:
    """The folders of one experiment. `data_root` and `results` are set by the profile."""

    experiment: str
    results: Path
    data_root: Path

    def listing(self, repository: str, revision: str) -> Path:
        """List of the tars of a hub repository."""
        name = f"{repository}@{revision}".replace("/", "--")
        return self.data_root / "listings" / f"{name}.json"

    def archives(self, dataset: str) -> Path:
        """Folder of the zip files that a data set is made from."""
        return self.data_root / "archives" / dataset

    def shards(self, dataset: str) -> Path:
        """Folder of the manifest of a data set, and of its tars where the workflow writes them."""
        return self.data_root / "shards" / dataset

    def fetched(self, dataset: str, tar: str) -> Path:
        """Folder of one tar that was fetched from a hub."""
        return self.shards(dataset) / tar.removesuffix(".tar")

    def weights(self, encoder_id: str) -> Path:
        """Folder of the weights of an encoder."""
        return self.data_root / "weights" / encoder_id

    def store(self, dataset: str, encoder_id: str, tar: str) -> Path:
        """Folder of the token store of one tar."""
        return self.data_root / "features" / dataset / encoder_id / tar.removesuffix(".tar")

    def pairs(self, dataset: str, source_id: str, target_id: str) -> Path:
        """Folder of the pairs table of two encoders."""
        return self.data_root / "features" / dataset / f"pairs-{source_id}-{target_id}"

    def head(self, encoder_id: str) -> Path:
        """Folder of the target encoder's final norm and projection."""
        return self.data_root / "heads" / encoder_id

    def texts(self, dataset: str, encoder_id: str) -> Path:
        """Folder of caption and class prompt embeddings."""
        return self.data_root / "texts" / dataset / encoder_id

    @property
    def experiment_folder(self) -> Path:
        """Folder of everything that belongs to this experiment alone."""
        return self.results / self.experiment

    def train(self, run: str) -> Path:
        """Folder of the checkpoint of a run."""
        return self.experiment_folder / "runs" / run / "train"

    def samples(self, run: str, dataset: str) -> Path:
        """Folder of the tokens that a run or baseline predicts for a data set."""
        return self.experiment_folder / "runs" / run / "samples" / dataset

    def evaluation(self, run: str) -> Path:
        """Folder of the metrics of a run or baseline."""
        return self.experiment_folder / "runs" / run / "evaluation"

    def page(self, run: str) -> Path:
        """Folder of the page of a run or baseline, with its figures and images."""
        return self.experiment_folder / "runs" / run / "page"

    def export(self, run: str) -> Path:
        """Folder of the tokens of a run or baseline in the forms that other models take."""
        return self.experiment_folder / "runs" / run / "export"

    @property
    def survey(self) -> Path:
        """Folder of what the data look like: counts, refused images, channels, norms, images in both sets."""
        return self.experiment_folder / "survey"

    @property
    def summary(self) -> Path:
        """Folder of the joined metrics of all runs."""
        return self.experiment_folder / "summary"

    @property
    def site(self) -> Path:
        """Folder of the result that the pages are copied from."""
        return self.experiment_folder / "site"

    def log(self, name: str) -> Path:
        """Log of one rule."""
        return self.experiment_folder / "logs" / f"{name}.log"

    @property
    def report(self) -> Path:
        """Folder of the static pages."""
        return self.experiment_folder / REPORT

    @property
    def key_figures(self) -> Path:
        """Folder of the figures and the table that Snakemake's own report shows."""
        return self.experiment_folder / "key-figures"
