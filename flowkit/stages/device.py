"""Which device a stage computes on."""

import torch


def best_device() -> str:
    """Return "cuda" where a GPU can be used, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
