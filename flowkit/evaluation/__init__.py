"""Metrics, retrieval, baselines and verdicts on held-out images."""
