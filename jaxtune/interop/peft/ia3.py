"""IA3 in PEFT's files: `ia3_l` of a module, `(out, 1)`, or `(1, in)` where it scales the input."""

import functools
import re
from typing import Any

import numpy as np

from jaxtune.adapt import IA3
from jaxtune.interop.peft.format import PREFIX, Export, Format, Import, Written
from jaxtune.interop.peft.modules import Module, by_part
from jaxtune.typing import InputError, Params

_KIND = 'ia3_l'


def _is(leaf: Any) -> bool:
  return isinstance(leaf, IA3)


def _obstacle(module: Module) -> str | None:
  if module.weight[0].path.startswith('embed/'):
    return f'{module.name} is an embedding, for which PEFT has no IA3'
  return None


def _vector(module: Module, leaves: list[Any]) -> np.ndarray:
  """`l` of a module as PEFT has it: one for all parts of a fused tensor."""
  reason = _obstacle(module)
  if reason:
    raise InputError(f'{reason}; write the whole model with save_hf')
  adapted = [leaf for leaf in leaves if _is(leaf)]
  if any(leaf.inside for leaf in adapted):
    first = adapted[0]
    if len(adapted) < len(leaves) or not all(
      leaf.inside and np.array_equal(leaf.l, first.l) for leaf in adapted
    ):
      raise InputError(
        f'{module.name} is one module of {len(leaves)} of our weights, which IA3 scales in unlike '
        'ways on the inputs; write the whole model with save_hf'
      )
    return np.asarray(first.l)[None]
  own = [leaf.l if _is(leaf) else np.ones(leaf.shape[-1]) for leaf in leaves]
  return by_part(module.weight, own)[:, None]


def _feedforward(inside: set[str], others: set[str]) -> str | list[str]:
  """`feedforward_modules`: a regular expression over whole names, or an empty list for none.

  PEFT takes a list as suffixes without their dots, and only if the targets are the same strings.
  """
  patterns = {re.sub(r'\\\.\d+(?=\\\.)', r'\\.\\d+', re.escape(name)) for name in inside}
  if any(re.fullmatch(pattern, other) for pattern in patterns for other in others):
    patterns = set(map(re.escape, inside))
  return '|'.join(sorted(patterns)) or []


def _write(export: Export) -> Written:
  adapted = export.adapted()
  vectors = {module.name: _vector(module, leaves) for module, leaves in adapted}
  inside = {name for name, vector in vectors.items() if len(vector) == 1}
  return Written(
    {f'{PREFIX}{name}.{_KIND}': np.ascontiguousarray(v) for name, v in vectors.items()},
    set(vectors),
    {
      'feedforward_modules': _feedforward(inside, set(vectors) - inside),
      'fan_in_fan_out': not all(module.weight[0].row.transpose for module, _ in adapted),
      'init_ia3_weights': True,
    },
  )


def _read(files: Import) -> Params:
  """Inputs first, then outputs: layers of one stack may differ, and then have one on the other."""

  def find(inside: bool, module: Module, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    name = f'{module.name}.{_KIND}'
    # The tensors say on which side they are, and PEFT loads none that the config contradicts.
    sides = {True: (1, shape[0]), False: (shape[1], 1)}
    if name not in files.tensors or (files.tensors[name].shape == sides[True]) != inside:
      return None
    return {'l': files.read(name, sides[inside]).reshape(-1)}

  def blank(weight: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {'l': np.ones_like(like['l'])}

  for inside in (True, False):
    params = files.wrapped(
      functools.partial(find, inside),
      blank,
      functools.partial(IA3, inside=inside),
      part=lambda found, rows: found if inside else {'l': found['l'][rows]},  # noqa: B023
    )
    files = files._replace(params=params)
  return files.params


IA3_FORMAT = Format(
  peft_type='IA3',
  holds=lambda path, leaf, trains: _is(leaf),
  write=_write,
  read=_read,
  trained=r'/l$',
  moves=lambda name, values: name.endswith(_KIND) and bool((values != 1).any()),
  known=frozenset('fan_in_fan_out feedforward_modules init_ia3_weights'.split()),
)
