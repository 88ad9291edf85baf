"""Experiments whose results stand in docs/results: `python -m experiments.NAME --help`."""
