"""Functions by the name that a configuration gives them, and which options they take."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from jaxtune.typing import InputError


def options_of(
  table: Mapping[str, Callable[..., Any]], what: str, name: str, given: int
) -> list[str]:
  """The names of the options of the function of that name, behind the `given` first arguments.

  Args:
    table: functions by name.
    what: they are, for the error.
    name: of one.
    given: how many of its arguments are no options.

  Raises:
    InputError: no such function.
  """
  if name not in table:
    raise InputError(f'unknown {what} {name!r}; known: {", ".join(table)}')
  return list(inspect.signature(table[name]).parameters)[given:]


def check_options(what: str, name: str, known: Iterable[str], options: Iterable[str]) -> None:
  """Refuses options that are not among those known.

  Raises:
    InputError: with those that there are.
  """
  known = list(known)
  for option in options:
    if option not in known:
      raise InputError(
        f'the {what} {name} has no option {option!r}; it has {", ".join(known) or "none"}'
      )


def is_on(value: Any) -> bool:
  """Whether a number is not 0; of an array, which a lane of a sweep may have, always."""
  return isinstance(value, jax.Array) or bool(value)
