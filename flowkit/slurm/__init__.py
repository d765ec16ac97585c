"""Training as a job of its own: submit or attach, follow to the end, cancel, say how it stands."""
