"""Static pages, figures and galleries from the files of an experiment."""
