"""Objectives: `(params, batch, key) -> Loss`, sums and weights so that accumulation is exact."""

from jaxtune.losses.causal_lm import causal_lm
from jaxtune.losses.classification import classification
from jaxtune.losses.loss import Loss, Objective
from jaxtune.losses.mean_squared_error import mean_squared_error
from jaxtune.losses.penalty import penalized

__all__ = ['Loss', 'Objective', 'causal_lm', 'classification', 'mean_squared_error', 'penalized']
