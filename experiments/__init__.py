"""Experiments as short scripts over the library; run them with `python -m experiments.NAME`."""

import gc

# Two thousand modules are not garbage: looking for some while they load takes a fifth of a second.
gc.set_threshold(100_000, 20, 20)
