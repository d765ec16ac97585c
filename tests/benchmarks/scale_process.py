"""One training's start on a data set of millions, in a process of its own: prints seconds, CPU seconds and memory.

    python scale_process.py FOLDER STEP     FOLDER as scale_material.py makes it; the first batch is that of STEP

Everything that is loaded anyway (torch, the package) is loaded before the clock starts and before memory is read.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from scale_material import existing_plan

from flowkit.features.order import Schedule
from flowkit.runtime import allow_many_open_files
from flowkit.stages.paired import open_training_pairs

BATCH = 256


def main(folder: Path, step: int) -> None:
    """Open the pairs, make the order of the epoch of `step`, and read its batch."""
    allow_many_open_files()
    (job,) = existing_plan(folder).select("train", run="flow")
    spec, memory = job.spec, _memory_mb("VmRSS")
    begin, cpu = time.perf_counter(), time.process_time()
    pairs = open_training_pairs(spec, spec.target["dataset"])
    opened = time.perf_counter()
    batches = pairs.batches(seed=0, batch_size=BATCH, start_step=step)
    found, ids, _, _ = next(batches)
    end, cpu_end, peak = time.perf_counter(), time.process_time(), _memory_mb("VmHWM")
    batches.close()
    _, expected = next(Schedule(len(pairs), BATCH, seed=0).steps(step))
    if found != step or ids.tolist() != expected.tolist():
        raise RuntimeError(f"the batch of step {step} is that of step {found}")
    found_all = {
        "pairs": len(pairs),
        "seconds": end - begin,
        "open_seconds": opened - begin,
        "cpu_seconds": cpu_end - cpu,
        "memory_mb": peak - memory,
    }
    sys.stdout.write(json.dumps(found_all) + "\n")


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
