"""The names of a classifier's outputs, kept beside its weights."""

import os

from jaxtune.interop.fields import read_json
from jaxtune.interop.source import locate
from jaxtune.typing import InputError

# PEFT warns about keys that it does not know in its own files, so an adapter's labels have one.
FILE = 'jaxtune.json'


def load_labels(source: str | os.PathLike[str]) -> tuple[str, ...] | None:
  """The label names of an adapter or a model folder in the order of the outputs; None without.

  Raises:
    InputError: the file that should hold them is damaged.
  """
  folder = locate(source)
  own, config = folder / FILE, folder / 'config.json'
  if own.exists():
    labels = read_json(own).get('labels')
    if labels is None:
      return None
    if not isinstance(labels, list):
      raise InputError(f'{own}: labels is {labels!r}; it must be a list of names')
    return tuple(map(str, labels))
  named = read_json(config).get('id2label') if config.exists() else None
  if not named:
    return None
  try:
    return tuple(str(named[str(i)]) for i in range(len(named)))
  except (KeyError, TypeError):
    raise InputError(f'{config}: id2label must map "0", "1", ... to names') from None


def check_labels(labels: tuple[str, ...], outputs: int) -> None:
  """One name an output, all different.

  Raises:
    InputError: they are not.
  """
  if len(labels) != outputs or len(set(labels)) != len(labels):
    raise InputError(
      f'{len(labels)} label names ({", ".join(labels[:5])}) for a model with {outputs} outputs; '
      'give each output a name of its own'
    )
