"""Datasets of Hugging Face's `datasets`: objects that a user has at hand, and names on its Hub."""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtune.data.lines import Step
from jaxtune.data.row import Row
from jaxtune.typing import InputError

PREFIX = 'hub://'
_NAME = re.compile(
  PREFIX + r'(?P<path>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.+-]+))?(?:/(?P<split>[\w.\[\]:%+-]+))?'
)


def is_dataset(source: Any) -> bool:
  """Whether `source` is a Dataset or an IterableDataset, or has the look of one."""
  return hasattr(source, 'column_names') and hasattr(source, '__iter__')


def load(name: str, streaming: bool = False) -> Any:
  """The dataset `hub://owner/name[:config][/split]`, by default its split `train`.

  Raises:
    InputError: no such name, `datasets` is not installed, or the Hub cannot be reached.
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise InputError(
      f'{name}: is no name on the Hub; write hub://owner/name, hub://owner/name/split or '
      'hub://owner/name:config/split'
    )
  try:
    import datasets
  except ImportError:
    raise InputError(
      f"{name}: reading from the Hub takes datasets; pip install 'jaxtune[datasets]'"
    ) from None
  try:
    return datasets.load_dataset(
      match['path'], match['config'], split=match['split'] or 'train', streaming=streaming
    )
  except Exception as error:  # of the network, of the Hub, of the files' own formats
    text = ' '.join(str(error).split())[:300]
    raise InputError(
      f'{name}: cannot be loaded ({type(error).__name__}: {text}); check the name and the network, '
      'or download its files and give their path'
    ) from None


def check(dataset: Any) -> None:
  """Refuses a whole DatasetDict, of which one split must be chosen."""
  if isinstance(dataset, Mapping):
    names = ', '.join(map(repr, dataset))
    raise InputError(f'the dataset has the splits {names}; give one of them, as dataset[name]')


def rows(dataset: Any, at: int = 0) -> Iterator[Step]:
  """The rows of a dataset from row `at` on; one without random access reads those before too."""
  rest = dataset.skip(at) if hasattr(dataset, 'skip') else itertools.islice(dataset, at, None)
  for number, record in enumerate(rest, at + 1):
    yield Row(record, f'the dataset: row {number}'), number, number
