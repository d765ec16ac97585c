"""Where captioned images come from: one configuration section per kind of data set.

Every kind ends as webdataset tars, so nothing after the stages `fetch` and `shards` knows the difference. Like the rest
of the configuration, this module imports neither torch nor anything that reads data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from flowkit.validation import Section, Whole

FirstShard = Annotated[
    Whole, Field(ge=0, description="Position in name order of the first tar to use; 0 is the first one.")
]
Shards = Annotated[
    Whole | None,
    Field(gt=0, description="Use only N tars in name order; null means all from first_shard on."),
]
SamplesPerShard = Annotated[
    Whole | None, Field(gt=0, description="Use only the first N samples of each tar; null means all.")
]
Views = Annotated[
    Whole,
    Field(
        gt=0,
        description="Views of an object that make one sample; members key.0.jpg, key.1.jpg, ...; 1 is a plain image.",
    ),
]


class DemoDataset(Section):
    """Captioned shapes that the workflow draws itself."""

    views: ClassVar[int] = 1

    kind: Literal["demo"]
    images: Whole = Field(gt=0, description="Number of images to draw.")
    images_per_shard: Whole = Field(500, gt=0, description="Images in one tar.")
    seed: Whole = Field(ge=0, description="Seed of the drawing generator; two data sets need two seeds.")


class SolidsDataset(Section):
    """Captioned solids that the workflow draws itself, each seen from angles evenly spaced on a circle around it."""

    kind: Literal["solids"]
    objects: Whole = Field(
        gt=0, description="Number of objects to draw; each is one sample of several views."
    )
    objects_per_shard: Whole = Field(100, gt=0, description="Objects in one tar.")
    views: Whole = Field(
        4, ge=2, le=360, description="Views of each object, at whole degrees of the circle around it."
    )
    seed: Whole = Field(ge=0, description="Seed of the drawing generator; two data sets need two seeds.")

    @property
    def images(self) -> int:
        """Images of all views, as rows of token stores."""
        return self.objects * self.views

    @property
    def images_per_shard(self) -> int:
        """Images of all views in one tar."""
        return self.objects_per_shard * self.views


class FolderDataset(Section):
    """A local folder of webdataset tars (image, .txt caption, optional .json)."""

    kind: Literal["folder"]
    path: str = Field(description="Folder that holds the tars.")
    first_shard: FirstShard = 0
    shards: Shards = None
    samples_per_shard: SamplesPerShard = None
    views: Views = 1


class HubDataset(Section):
    """Webdataset tars of a data set on the Hugging Face hub."""

    kind: Literal["hub"]
    repository: str = Field(
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Owner and name, for instance BLIP3o/BLIP3o-Pretrain-Short-Caption.",
    )
    revision: str = Field(
        "main",
        pattern=r"^[\w./-]+$",
        description="Commit, tag or branch; a branch is pinned to its commit when the tars are first listed.",
    )
    first_shard: FirstShard = 0
    shards: Shards = None
    samples_per_shard: SamplesPerShard = None
    views: Views = 1


class Archive(Section):
    """A file that is fetched by URL and accepted only with the right digest."""

    url: str = Field(pattern=r"^https?://", description="Where it lies.")
    bytes: Whole = Field(gt=0, description="Its size.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Its digest.")


COCO_VAL2017_IMAGES = Archive(
    url="http://images.cocodataset.org/zips/val2017.zip",
    bytes=815_585_330,
    sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
)
COCO_2017_ANNOTATIONS = Archive(
    url="http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    bytes=252_907_541,
    sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
)


class CocoDataset(Section):
    """COCO images with the first five of their captions; without further keys the 5,000 images of val2017."""

    views: ClassVar[int] = 1

    kind: Literal["coco"]
    images: Whole = Field(5000, gt=0, description="Use the first N images by image id.")
    images_per_shard: Whole = Field(500, gt=0, description="Images in one tar.")
    archives: str | None = Field(
        None, description="Local folder that holds both zip files already; null fetches them."
    )
    pictures: Archive = Field(COCO_VAL2017_IMAGES, description="Zip file of the images.")
    annotations: Archive = Field(COCO_2017_ANNOTATIONS, description="Zip file of the annotations.")
    captions: str = Field(
        "annotations/captions_val2017.json", description="Member of the annotations that holds the captions."
    )
    instances: str | None = Field(
        "annotations/instances_val2017.json",
        description="Member that says what is in the images; null leaves zero-shot classification out.",
    )

    @field_validator("captions", "instances")
    @classmethod
    def _is_json(cls, member: str | None) -> str | None:
        if member is not None and not member.endswith(".json"):
            raise ValueError("expected the name of a .json file inside the annotations archive")
        return member


AnyDataset = DemoDataset | SolidsDataset | FolderDataset | HubDataset | CocoDataset
Dataset = Annotated[AnyDataset, Field(discriminator="kind")]
DATASET_KINDS: dict[str, type[Section]] = {
    "demo": DemoDataset,
    "solids": SolidsDataset,
    "folder": FolderDataset,
    "hub": HubDataset,
    "coco": CocoDataset,
}


def overlap(train: Section, evaluation: Section) -> str | None:
    """Return `key=value reason` if two data sets draw from the same images, None if they do not."""
    match train, evaluation:
        case DemoDataset(), DemoDataset() if train.seed == evaluation.seed:
            return f"seed={train.seed} draws the training images again"
        case SolidsDataset(), SolidsDataset() if train.seed == evaluation.seed:
            return f"seed={train.seed} draws the training objects again"
        case CocoDataset(), CocoDataset() if train.pictures.sha256 == evaluation.pictures.sha256:
            return f"pictures.url={evaluation.pictures.url} is the training set's archive"
        case FolderDataset(), FolderDataset() if _is_same(train, evaluation) and _meet(train, evaluation):
            return f"path={evaluation.path} is the training set's folder, and the ranges of tars overlap"
        case HubDataset(), HubDataset() if train.repository == evaluation.repository and _meet(
            train, evaluation
        ):
            return f"repository={evaluation.repository} is the training set's, and the ranges of tars overlap"
    return None


def _is_same(one: FolderDataset, other: FolderDataset) -> bool:
    return Path(one.path).resolve() == Path(other.path).resolve()


def _meet(one: FolderDataset | HubDataset, other: FolderDataset | HubDataset) -> bool:
    """True if two ranges of tars have one in common."""
    first, second = sorted((one, other), key=lambda dataset: dataset.first_shard)
    return first.shards is None or first.first_shard + first.shards > second.first_shard
