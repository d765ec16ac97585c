"""Optimisation of the translation network: step, loop, schedule, checkpoints."""
