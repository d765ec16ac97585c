"""Settings for all tests."""

from __future__ import annotations

import os

# before any test imports a numeric library: two busy test processes must not use four threads
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
