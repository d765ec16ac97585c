"""The GPU that is planned for and its dense matrix rates, by `machine.yaml` or by the data sheet.

Products in bf16 and fp16 run at one rate, on tensor cores. Those in fp32 run without TF32: flowkit allows it nowhere,
PyTorch not by itself, and a token that is called fp32 is to be that. So fp32 is 15 times as slow on an H100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowkit.errors import ConfigError
from flowkit.planning.billing import Partition

USUAL_GPU = "H100"
"""Card where the machine names none."""
DATA_SHEETS: Mapping[str, Mapping[str, float]] = {
    "H100": {"bf16": 989.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "fp32": 19.5},
}
"""Dense TFLOP/s of the SXM modules."""


def kind_of(precision: str) -> str:
    """Return whose rate a precision runs at: bf16, also for fp16, or fp32."""
    return "fp32" if precision == "fp32" else "bf16"


@dataclass(frozen=True)
class Card:
    """A GPU: its name, and by kind of precision the TFLOP/s that the `partition` of machine.yaml gives it."""

    name: str
    tflops: Mapping[str, float]
    partition: str
    is_named: bool

    def is_called(self, device: str) -> bool:
        """Whether a device may be such a card: another one goes at another rate."""
        return not self.is_named or self.name.lower() in device.lower()

    def peak(self, precision: str) -> float:
        """Return the dense TFLOP/s in a precision; raises `ConfigError` if neither machine nor data sheet tells."""
        kind = kind_of(precision)
        found = self.tflops.get(kind) or DATA_SHEETS.get(self.name.upper(), {}).get(kind)
        if found is None:
            raise ConfigError(
                f"machine.yaml, partitions.{self.partition}: {kind}_tflops of {self.name} is not set, and a rate of "
                f"another card would be a guess; give its dense rate by the data sheet, in TFLOP/s"
            )
        return found

    def assumption(self, precision: str) -> str:
        """Return why the rate in a precision is an assumption, nothing where machine.yaml gives it."""
        kind = kind_of(precision)
        if kind in self.tflops:
            return ""
        sheet = "data sheet of the SXM card"
        if not self.is_named:
            return f"no GPU is named in machine.yaml; {sheet}"
        return f"{kind}_tflops of {self.partition} is not set in machine.yaml; {sheet}"


def card_of(partition_name: str, partition: Partition | None) -> Card:
    """Return the GPU of a partition; where the machine says nothing of it, the usual one."""
    given = {} if partition is None else {"bf16": partition.bf16_tflops, "fp32": partition.fp32_tflops}
    tflops = {kind: rate for kind, rate in given.items() if rate is not None}
    if partition is None or not (partition.gpu or tflops):
        return Card(USUAL_GPU, {}, partition_name, is_named=False)
    name = partition.gpu or f"the GPU of {partition_name}"
    return Card(name, tflops, partition_name, is_named=bool(partition.gpu))
