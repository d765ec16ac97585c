"""The pictures of the evaluation set, read from the source tars for the pages that show them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from flowkit.report.data import Picture
from flowkit.report.details import tiles_across
from flowkit.shards.reader import Sample, decode_image, read_samples
from flowkit.stages.inputs import tar_of
from flowkit.stages.paired import open_pairs
from flowkit.stages.session import Spec, committed
from flowkit.view_keys import key_of_view


class Pictures:
    """The pictures of the evaluated samples by their number, read from the source tars."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        pairs = open_pairs(spec, spec.target["dataset"], data={"layout": "patches", "source_tokens": "all"})
        _, manifest = committed(
            spec.places.pairs(spec.target["dataset"], spec.target["source"], spec.target["target"])
        )
        self.tars: list[str] = manifest["counts"]["tars"]
        self.views = pairs.views
        self.tar_of_sample = pairs.rows.tar_NV[:, 0]
        self.keys = pairs.samples()["key"].tolist()

    def __call__(self, indices: Sequence[int]) -> list[Picture]:
        """Return the pictures of these samples, in this order; each tar is read once."""
        wanted: dict[str, set[str]] = {}
        for index in indices:
            wanted.setdefault(self._tar(index), set()).update(self._keys_of(index))
        found: dict[tuple[str, str], Sample] = {}
        for tar, keys in wanted.items():
            path, _ = tar_of(self.spec, self.spec.target["dataset"], tar)
            samples = (one for one in read_samples(path, self.views) if isinstance(one, Sample))
            found |= {(tar, sample.key): sample for sample in samples if sample.key in keys}
        chosen = ([found[self._tar(index), key] for key in self._keys_of(index)] for index in indices)
        return [_picture(views) for views in chosen]

    def _tar(self, index: int) -> str:
        return self.tars[self.tar_of_sample[index]]

    def _keys_of(self, index: int) -> list[str]:
        key = self.keys[index]
        return [key] if self.views == 1 else [key_of_view(key, view) for view in range(self.views)]


def _picture(views: Sequence[Sample]) -> Picture:
    """Return the picture of a sample; several views are tiles, placed as their error maps are."""
    images = [decode_image(view) for view in views]
    caption = views[0].captions[0] if views[0].captions else ""
    if len(images) == 1:
        return Picture(images[0], caption)
    width, height = images[0].size
    across = tiles_across(len(images))
    sheet = Image.new("RGB", (across * width, -(-len(images) // across) * height), "white")
    for view, image in enumerate(images):
        down, right = divmod(view, across)
        sheet.paste(image.resize((width, height)), (right * width, down * height))
    return Picture(sheet, caption)
