"""Experiments as short scripts over the library; run them with `python -m experiments.NAME`."""
