"""One module per stage of the workflow: open inputs, call the library, commit results."""
