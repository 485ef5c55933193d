"""Checks of options that several objectives have.

An array passes: the lanes of a sweep have values of their own, which are known when it runs.
"""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxtune.typing import InputError


def check_positive(objective: str, **values: Any) -> None:
  """Refuses what is no positive number.

  Raises:
    InputError: with the name and the value.
  """
  _check(objective, values, lambda x: 0 < x < float('inf'), 'it must be a positive number')


def check_at_least_zero(objective: str, **values: Any) -> None:
  """Refuses what is no number from 0.

  Raises:
    InputError: with the name and the value.
  """
  _check(objective, values, lambda x: 0 <= x < float('inf'), 'it must be a number of at least 0')


def check_fraction(objective: str, **values: Any) -> None:
  """Refuses what is not from 0 to below 1.

  Raises:
    InputError: with the name and the value.
  """
  _check(objective, values, lambda x: 0 <= x < 1, 'it must be from 0 to below 1')


def check_smoothing(objective: str, value: Any) -> None:
  """Refuses what is no probability of a wrong label below one half.

  Raises:
    InputError: with the value.
  """
  remedy = 'it is the probability that a label is wrong, from 0 to below 0.5'
  _check(objective, {'label_smoothing': value}, lambda x: 0 <= x < 0.5, remedy)


def _check(
  objective: str, values: dict[str, Any], holds: Callable[[Any], bool], remedy: str
) -> None:
  for name, value in values.items():
    if isinstance(value, jax.Array | np.ndarray):
      continue
    if not (isinstance(value, numbers.Real) and holds(value)):
      raise InputError(f'{objective}: {name} is {value!r}; {remedy}')
