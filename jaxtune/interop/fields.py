"""Reading the fields of a JSON file with errors that name file, field and value."""

import json
import os
import pathlib
from typing import Any

from jaxtune.models.layers import ACTIVATIONS
from jaxtune.typing import InputError

Raw = dict[str, Any]

# No size of a model is larger, and tables of numbers that long still fit the memory.
_MOST = 2**24


def read_json(path: str | os.PathLike[str]) -> Raw:
  """The object in a JSON file.

  Raises:
    InputError: not UTF-8, not JSON, or not an object.
  """
  try:
    raw = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    raise InputError(f'{path}: is not JSON ({error}); download or write it again') from None
  if not isinstance(raw, dict):
    raise InputError(f'{path}: holds {type(raw).__name__} where a JSON object belongs')
  return raw


def integer(raw: Raw, file: str, key: str, default: int | None = None, least: int = 1) -> int:
  """A whole number of at least `least`; `default` where the field is absent or null.

  Raises:
    InputError: absent without a default, or anything else.
  """
  value = _present(raw, file, key, default)
  if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
    kind = 'a positive whole number' if least == 1 else f'a whole number of at least {least}'
    kind = f'at most {_MOST}' if isinstance(value, int) and value > _MOST else kind
    raise InputError(f'{file}: {key} is {value!r}; it must be {kind}')
  return value


def real(raw: Raw, file: str, key: str, default: float | None = None) -> float:
  """A positive finite number; `default` where the field is absent or null.

  Raises:
    InputError: absent without a default, or anything else.
  """
  value = _present(raw, file, key, default)
  if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e300:
    raise InputError(f'{file}: {key} is {value!r}; it must be a positive number')
  return float(value)


def boolean(raw: Raw, file: str, key: str, default: bool) -> bool:
  """True or false; `default` where the field is absent or null.

  Raises:
    InputError: anything else.
  """
  value = _present(raw, file, key, default)
  if not isinstance(value, bool):
    raise InputError(f'{file}: {key} is {value!r}; it must be true or false')
  return value


def activation(raw: Raw, file: str, default: str, key: str = 'hidden_act') -> str:
  """The name of a known activation function; `default` where the field is absent or null.

  Raises:
    InputError: an unknown one.
  """
  value = _present(raw, file, key, default)
  if not isinstance(value, str) or value not in ACTIVATIONS:
    raise InputError(f'{file}: {key} is {value!r}; known: {", ".join(sorted(ACTIVATIONS))}')
  return value


def check_width(width: int, heads: int, file: str) -> None:
  """The heads of families that have no width of their own divide the model's.

  Raises:
    InputError: they do not.
  """
  if width % heads:
    raise InputError(
      f'{file}: the width {width} is not a multiple of the {heads} attention heads; '
      'take the config.json that belongs to the weights'
    )


def refuse(raw: Raw, file: str, **harmless: Any) -> None:
  """Fields that change the arithmetic in a way these models do not have must be absent or harmless.

  Raises:
    InputError: one is set to something else.
  """
  for key, value in harmless.items():
    if raw.get(key) not in (None, value):
      raise InputError(
        f'{file}: {key} is {raw[key]!r}, which jaxtune cannot compute (only {value!r}); '
        'choose another checkpoint'
      )


def _present(raw: Raw, file: str, key: str, default: Any) -> Any:
  value = default if raw.get(key) is None else raw[key]
  if value is None:
    raise InputError(f'{file}: has no field {key!r}; take the file that belongs to the weights')
  return value
