"""Frozen image encoders behind one contract, one file per family."""
