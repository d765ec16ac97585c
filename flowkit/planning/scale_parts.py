"""The parts of a plan of N images (scale.py): what was assumed, how tokens are kept, what each stage takes."""

from __future__ import annotations

from dataclasses import dataclass

from flowkit.planning.billing import Quota
from flowkit.planning.rates import Rate
from flowkit.planning.sizes import Amount


@dataclass(frozen=True)
class Assumed:
    """Something that nobody measured or configured: what, its value as text, and why that value."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class StoreLine:
    """The stores of all images, kept one way, and the float16 tokens that are `converting`, which may go after that.

    `image_bytes` is what one more image takes, `read_bytes` what reading one takes, by layout. It `is_offered` if
    the workflow can keep tokens so.
    """

    storage: str
    stored: Amount
    converting: Amount
    image_bytes: int
    read_bytes: dict[str, int]
    is_offered: bool


@dataclass(frozen=True)
class QuotaUse:
    """What a quota that holds the data root leaves room for: images by storage; None: without a limit."""

    quota: Quota
    images: dict[str, int | None]

    def holds(self, stored: Amount) -> bool:
        """Whether so much fits, in bytes and in files."""
        bytes_fit = self.quota.limit_bytes is None or stored.bytes <= self.quota.limit_bytes
        return bytes_fit and (self.quota.files is None or stored.files <= self.quota.files)


@dataclass(frozen=True)
class Cost:
    """GPU hours, what they bill in SBU, and in money; None where nobody can tell."""

    gpu_hours: float | None
    sbu: float | None
    money: float | None


@dataclass(frozen=True)
class ExtractionLine:
    """One encoder over all images: operations of an image, rate, cost, and its jobs of `job_hours` each.

    In bf16 it would be `times_in_bf16` as fast; None where it is in half precision, or nobody can tell.
    """

    encoder: str
    precision: str
    operations: float
    rate: Rate
    cost: Cost
    jobs: int
    job_hours: float | None
    times_in_bf16: float | None


@dataclass(frozen=True)
class TrainingLine:
    """One run: operations of a sample, rate on one GPU, epochs, and what each GPU reads per second, by storage.

    A sample is `views` images.
    """

    run: str
    precision: str
    views: int
    operations: float
    rate: Rate
    samples: int
    epochs: float
    cost: Cost
    gpus: int
    read_bytes: dict[str, int]
    times_in_bf16: float | None

    @property
    def samples_seen(self) -> float:
        """Samples of all epochs."""
        return self.epochs * self.samples

    def bytes_per_second(self, storage: str) -> float | None:
        """What a GPU reads; None where nobody can tell its rate."""
        per_second = self.rate.per_second
        return None if per_second is None else per_second * self.read_bytes[storage]


@dataclass(frozen=True)
class Tars:
    """The tars of the images: how many, of how many images and bytes each, and what they take together."""

    count: int
    images: int
    bytes: int
    kept: Amount
