"""A stream looked at through windows: what comes out is made from many elements at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain

# Takes the elements of one window, and with their number makes what comes out.
Take = Callable[[Iterator[Any]], list[Any]]
Make = Callable[[list[Any], int], Sequence[Any]]


class Windows(grain.IterDataset):
  """What `make(window, number)` gives for each window of elements that `take(parent)` takes.

  Its place is the place before the window and a count of what has come out of it, however large
  the window is: a restart takes the window again, so `make` has to be a pure function.
  """

  def __init__(self, parent: grain.IterDataset, take: Take, make: Make):
    super().__init__(parent)
    self._take = take
    self._make = make

  def __iter__(self) -> 'WindowsIterator':
    return WindowsIterator(iter(self._parent), self._take, self._make)


class WindowsIterator(grain.DatasetIterator):
  """The iterator of `Windows`."""

  def __init__(self, parent: grain.DatasetIterator, take: Take, make: Make):
    super().__init__(parent)
    self._source = parent
    self._take = take
    self._make = make
    self._start = parent.get_state()
    self._number = self._next = 0
    self._items: Sequence[Any] | None = None

  def __next__(self) -> Any:
    while True:
      if self._items is None:
        window = self._take(self._source)
        if not window:
          raise StopIteration
        self._items = self._make(window, self._number)
      if self._next < len(self._items):
        self._next += 1
        return self._items[self._next - 1]
      self._start = self._source.get_state()
      self._number, self._next, self._items = self._number + 1, 0, None

  def get_state(self) -> dict[str, Any]:
    return {'parent': self._start, 'window': self._number, 'next': self._next}

  def set_state(self, state: dict[str, Any]) -> None:
    self._source.set_state(state['parent'])
    self._start = state['parent']
    self._number, self._next, self._items = state['window'], state['next'], None
