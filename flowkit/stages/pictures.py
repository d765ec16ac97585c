"""The evaluation images, read from the source tars for the pages that show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowkit.report.data import Picture
from flowkit.shards.reader import Sample, decode_image, read_samples
from flowkit.stages.inputs import tar_of
from flowkit.stages.paired import open_pairs
from flowkit.stages.session import Spec, committed


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
