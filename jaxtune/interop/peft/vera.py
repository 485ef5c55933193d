"""VeRA in PEFT's files: `vera_lambda_d` [r] and `vera_lambda_b` [out] of each module, one pair.

`base_model.vera_A` [r, most in] and `base_model.vera_B` [most out, r] are shared by all modules,
which take the first columns of A and rows of B.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxtune.adapt import VeRA
from jaxtune.adapt.vera import MOST, vera_leaf
from jaxtune.interop.peft.format import PREFIX, Export, Format, Import, Written
from jaxtune.interop.peft.modules import Module
from jaxtune.typing import InputError, Params

_A, _B = 'base_model.vera_A', 'base_model.vera_B'
_D, _OUT = 'vera_lambda_d', 'vera_lambda_b'


def _is(leaf: Any) -> bool:
  return isinstance(leaf, VeRA)


def _obstacle(module: Module) -> str | None:
  if module.weight[0].row.part is not None:
    return (
      f'{module.name} holds several of our weights, each with its own lambda_d, and PEFT has one '
      'for all'
    )
  if module.weight[0].path.startswith('embed/'):
    return f'{module.name} is an embedding, for which PEFT has no VeRA'
  return None


def _pair(adapted: list[tuple[Module, Any]]) -> tuple[np.ndarray, np.ndarray]:
  """`(A [r, most in], B [most out, r])` of which every leaf has slices."""
  _, wide = max(adapted, key=lambda one: one[1].a.shape[0])
  _, high = max(adapted, key=lambda one: one[1].b.shape[1])
  for module, leaf in adapted:
    inputs, outputs = leaf.shape
    if (
      leaf.scale != wide.scale
      or not np.array_equal(leaf.a, wide.a[:inputs])
      or not np.array_equal(leaf.b, high.b[:, :outputs])
    ):
      raise InputError(
        f'{module.name} has other random matrices than the rest, and a file of PEFT has one pair; '
        'adapt all weights in one call of vera, or write the whole model with save_hf'
      )
  unit = 1 / MOST if np.issubdtype(high.b.dtype, np.integer) else 1.0
  return wide.a.T * np.float32(wide.scale / unit), high.b.T * np.float32(unit)


def _write(export: Export) -> Written:
  adapted = []
  for module, leaves in export.adapted():
    reason = _obstacle(module)
    if reason:
      raise InputError(f'{reason}; write the whole model with save_hf')
    adapted.append((module, leaves[0]))
  a, b = _pair(adapted)
  tensors = {_A: a, _B: b}
  for module, leaf in adapted:
    tensors[f'{PREFIX}{module.name}.{_D}'] = leaf.lambda_d
    tensors[f'{PREFIX}{module.name}.{_OUT}'] = leaf.lambda_b
  return Written(
    {name: np.ascontiguousarray(value) for name, value in tensors.items()},
    {module.name for module, _ in adapted},
    {
      'r': len(a),
      'vera_dropout': 0.0,
      'bias': 'none',
      'save_projection': True,
      'projection_prng_key': 0,
      'd_initial': 0.1,
      'fan_in_fan_out': not all(module.weight[0].row.transpose for module, _ in adapted),
    },
  )


def _read(files: Import) -> Params:
  if _A not in files.tensors:
    raise InputError(
      f'{files.folder}: lacks {_A}, which PEFT would make anew from its random generator; save the '
      'adapter with save_projection=True'
    )
  rank = files.integer('r', files.config.get('r'))
  sides = {name: files.tensors[name].shape for name in (_A, _B) if name in files.tensors}
  a = files.read(_A, (rank, *sides[_A][1:2]))
  b = files.read(_B, (*sides.get(_B, ())[:1], rank))

  def find(module: Module, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    names = [f'{module.name}.{kind}' for kind in (_D, _OUT)]
    if not any(name in files.tensors for name in names):
      return None
    if shape[0] > a.shape[1] or shape[1] > b.shape[0]:
      raise InputError(
        f'{files.folder}: {_A} and {_B} are for matrices up to {a.shape[1]}x{b.shape[0]}, and '
        f'{module.name} is {shape[0]}x{shape[1]}; take the base it was made for'
      )
    return {
      'lambda_d': files.read(names[0], (rank,)),
      'lambda_b': files.read(names[1], (shape[1],)),
    }

  def blank(weight: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(value) for name, value in like.items()}

  (codes_a, step_a), (codes_b, step_b) = _codes(a.T), _codes(b.T)

  def make(weight: Any, **vectors: Any) -> VeRA:
    return vera_leaf(weight, codes_a, codes_b, step_a * step_b, **vectors)

  return files.wrapped(find, blank, make)


def _codes(values: np.ndarray) -> tuple[Any, float]:
  """`(values, 1)`, or on the grid of `adapt.vera` `(int8 codes, what one stands for)`."""
  step = float(np.abs(values).max()) / MOST
  codes = np.rint(values / step) if step else values
  if step and np.abs(codes * step - values).max() < 1e-4 * step:
    return jnp.asarray(codes, jnp.int8), step
  return jnp.asarray(values), 1.0


VERA = Format(
  peft_type='VERA',
  holds=lambda path, leaf, trains: _is(leaf),
  write=_write,
  read=_read,
  trained=r'/lambda_[bd]$',
  biases='vera_only',
  moves=lambda name, values: name.endswith(_OUT) and bool(values.any()),
  known=frozenset(
    'bias d_initial fan_in_fan_out init_weights layers_pattern projection_prng_key r '
    'save_projection vera_dropout'.split()
  ),
)
