"""From a trained translator and source tokens to sampled target tokens."""
