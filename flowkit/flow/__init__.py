"""Rectified flow in the symbols of the papers: path, times, noise, solvers, objective. Imports torch only."""
