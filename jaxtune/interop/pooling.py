"""How a sentence-transformers folder makes an embedding of hidden states."""

import json
import os
import pathlib
from typing import NamedTuple

from jaxtune.interop import fields
from jaxtune.interop.source import locate
from jaxtune.typing import InputError

# Its words for the poolings that `models.embed` has; the fields of its file begin with these.
_WORDS = {'cls': 'first', 'mean': 'mean', 'lasttoken': 'last'}


class Pooling(NamedTuple):
  """The arguments of `models.embed` of the same names."""

  pooling: str
  normalize: bool


def load_pooling(source: str | os.PathLike[str]) -> Pooling:
  """Reads `modules.json` and the configuration of the pooling that it names.

  `models.embed(model, params, tokens, mask, *load_pooling(folder))` is then the embedding that
  sentence-transformers computes.

  Raises:
    InputError: the folder has no such files, or a module or a pooling that jaxtune lacks.
  """
  folder = locate(source)
  paths = _modules(folder / 'modules.json')
  strange = [kind for kind in paths if kind not in ('Transformer', 'Pooling', 'Normalize')]
  if strange or 'Pooling' not in paths:
    raise InputError(
      f'{folder / "modules.json"}: the modules are {", ".join(paths)}; jaxtune has Transformer, '
      'Pooling and Normalize'
    )
  file = folder / paths['Pooling'] / 'config.json'
  raw = fields.read_json(file)
  prefix = 'pooling_mode_'
  asked = [
    key.removeprefix(prefix).removesuffix('_tokens').removesuffix('_token')
    for key, value in raw.items()
    if key.startswith(prefix) and value
  ]
  asked = [raw['pooling_mode']] if isinstance(raw.get('pooling_mode'), str) else asked or ['mean']
  if len(asked) > 1 or asked[0] not in _WORDS:
    raise InputError(
      f'{file}: asks for the pooling {" and ".join(asked)}; jaxtune has one of {", ".join(_WORDS)}'
    )
  fields.refuse(raw, str(file), include_prompt=True)
  return Pooling(_WORDS[asked[0]], 'Normalize' in paths)


def _modules(file: pathlib.Path) -> dict[str, str]:
  """The folder of each module by its kind, in their order."""
  if not file.exists():
    raise InputError(
      f'{file.parent}: has no modules.json, so it is not a folder of sentence-transformers; '
      'choose a pooling of models.embed'
    )
  try:
    modules = json.loads(file.read_text(encoding='utf-8'))
    return {str(m['type']).rpartition('.')[2]: str(m['path']) for m in modules}
  except (ValueError, TypeError, KeyError, RecursionError):
    raise InputError(
      f'{file}: is not a list of modules, each with a type and a path; download it again'
    ) from None
