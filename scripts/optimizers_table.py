"""Writes the table of all update rules into docs/optimizers.md, from the code.

python scripts/optimizers_table.py
"""

import inspect
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import optim, tree
from jaxtune.optim import by_name
from jaxtune.typing import InputError

PAGE = pathlib.Path(__file__).parents[1] / 'docs' / 'optimizers.md'
MARKS = '<!-- rules: begin -->\n', '<!-- rules: end -->\n'

SHAPE = jax.ShapeDtypeStruct((4, 1024, 1024), jnp.float32)
TREES: tuple[Any, ...] = (
  {'decoder': {'0-3': {'mlp': {'up': SHAPE}}}},
  {  # for the rules of LoRA's factors
    'decoder': {
      '0-3': {
        'mlp': {
          'up': {
            'a': jax.ShapeDtypeStruct((4, 1024, 16), jnp.float32),
            'b': jax.ShapeDtypeStruct((4, 16, 1024), jnp.float32),
          }
        }
      }
    }
  },
)
ARGUMENTS = {
  'dpsgd': {'l2_norm_clip': 1.0, 'noise_multiplier': 1.0, 'seed': 0},
  'lbfgs': {'linesearch': None},
  'noisy_sgd': {'key': jax.random.key(0)},
}


def state_bytes(name: str) -> float:
  """Bytes of state a parameter; scalars are too few to show."""
  rule = optim.create(name, 1e-3, **ARGUMENTS.get(name, {}))
  for params in TREES:
    try:
      return optim.state_bytes(rule, params) / tree.count(params)
    except InputError:
      continue
  raise InputError(f'{name} takes none of the trees of this script')


def papers(text: str) -> list[str]:
  """arXiv numbers in a docstring, in their order."""
  return list(
    dict.fromkeys(re.findall(r'(?i)arxiv[^\s]*?[\s:/]*(?:abs/|pdf/)?(\d{4}\.\d{4,5})', text))
  )


def row(name: str) -> str:
  factory = by_name.factory(name)
  text = inspect.getdoc(factory) or ''
  first = re.split(r'\.(?:\s|$)', ' '.join(text.split('\n\n')[0].split()))[0].replace('|', r'\|')
  links = ', '.join(f'[{n}](https://arxiv.org/abs/{n})' for n in papers(text))
  where = 'jaxtune' if name in by_name.OWN else 'optax'
  size = f'{state_bytes(name):.2f}'.rstrip('0').rstrip('.')
  return f'| `{name}` | {where} | {first} | {size} | {links} |'


def table() -> str:
  head = ['| rule | of | what it is | bytes | papers |', '|---|---|---|---|---|']
  return '\n'.join([*head, *(row(name) for name in optim.names())]) + '\n'


def page(text: str) -> str:
  """The page with its table made anew."""
  before, rest = text.split(MARKS[0])
  return before + MARKS[0] + table() + MARKS[1] + rest.split(MARKS[1])[1]


if __name__ == '__main__':
  PAGE.write_text(page(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
