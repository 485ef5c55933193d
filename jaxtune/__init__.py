"""jaxtune: optimize and fine-tune large models in JAX, as composable functions.

Subpackages load when they are first used: `from jaxtune import optim` loads only JAX and Optax.
"""

import importlib

__version__ = '0.1.0'

_PACKAGES = (
  'adapt',
  'data',
  'interop',
  'losses',
  'models',
  'ops',
  'optim',
  'plan',
  'report',
  'shard',
  'train',
  'tree',
  'typing',
)


def __getattr__(name: str):
  if name in _PACKAGES:
    return importlib.import_module(f'jaxtune.{name}')
  raise AttributeError(f'module jaxtune has no attribute {name!r}; it has {", ".join(_PACKAGES)}')


def __dir__() -> list[str]:
  return sorted([*globals(), *_PACKAGES])
