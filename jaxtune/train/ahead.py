"""The next batch, made and placed while the devices are at this step."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxtune.typing import Batch

Held = tuple[Batch, int]  # a placed batch and its real tokens


def tokens_of(batch: Batch) -> int:
  """The real tokens of a host batch, in all its parts."""
  parts = [tokens_of(part) for part in batch.values() if isinstance(part, Mapping)]
  return int(np.sum(batch.get('mask', 0))) + sum(parts)


class Ahead:
  """Placed batches with their real tokens; its place is behind the batch that was given last.

  Args:
    batches: host batches with `get_state` and `set_state`.
    place: puts one on the devices.
  """

  def __init__(self, batches: Any, place: Callable[[Batch], Batch]):
    self._batches, self._place = batches, place
    self._held: Held | Exception | None = None
    self._cursor: Any = None  # before what is held

  def __iter__(self) -> 'Ahead':
    return self

  def __next__(self) -> Held:
    held, self._held = self._make() if self._held is None else self._held, None
    if isinstance(held, Exception):
      raise held
    return held

  def look(self) -> None:
    """Makes the next batch now; what goes wrong with it is raised when it is asked for."""
    if self._held is None:
      self._cursor = self._batches.get_state()
      self._held = self._make()

  def _make(self) -> Held | Exception:
    try:
      batch = next(self._batches)
      return self._place(batch), tokens_of(batch)
    except Exception as error:
      return error

  def get_state(self) -> Any:
    """The place in the batches, as if none was made ahead."""
    return self._batches.get_state() if self._held is None else self._cursor

  def set_state(self, state: Any) -> None:
    """Goes to a saved place."""
    self._held = None
    self._batches.set_state(state)

  def close(self) -> None:
    """Leaves the batches where the last one was given."""
    if self._held is not None:
      self.set_state(self._cursor)
