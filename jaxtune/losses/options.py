"""Checks of options that several objectives have."""

from jaxtune.typing import InputError


def check_fraction(objective: str, name: str, value: float) -> None:
  """Refuses what is not from 0 to below 1.

  Raises:
    InputError: with the value.
  """
  if not 0 <= value < 1:
    raise InputError(f'{objective}: {name} is {value!r}; it must be from 0 to below 1')


def check_not_negative(objective: str, name: str, value: float) -> None:
  """Refuses what is not a number from 0.

  Raises:
    InputError: with the value.
  """
  if not 0 <= value < float('inf'):
    raise InputError(f'{objective}: {name} is {value!r}; give a number from 0')
