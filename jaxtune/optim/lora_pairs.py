"""Pairs of LoRA factors in a parameter tree: which leaf is the A, which the B of a weight."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune import tree
from jaxtune.typing import InputError


class Pair(NamedTuple):
  """Positions, in tree order, of the factors A `[..., in, r]` and B `[..., r, out]` of a weight."""

  a: int
  b: int


def find_pairs(params: Any) -> list[Pair]:
  """The pairs of a tree: two paths that differ in one name.

  The names are `a` and `b` at the end, as in a weight leaf (`attn/q/a`), if the rank is at most
  either side; or `lora_a` and `lora_b` (`lora_A` and `lora_B`) anywhere (`q/lora_A/kernel`).

  Raises:
    InputError: factors named `lora_` whose shapes do not multiply.
  """
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  shapes = {tree.path_name(path): leaf.shape for path, leaf in leaves}
  position = {name: i for i, name in enumerate(shapes)}
  pairs = []
  for name, a in shapes.items():
    partner = re.sub(r'(?<![^/])(a$|lora_[aA](?![^/]))', _other, name)
    if partner == name or partner not in shapes:
      continue
    b = shapes[partner]
    multiply = len(a) > 1 and len(b) == len(a) and a[:-2] == b[:-2] and a[-1] == b[-2]
    if 'lora_' in name.lower() and not multiply:
      raise InputError(
        f'LoRA factors {name!r} of shape {a} and {partner!r} of shape {b} do not multiply; they '
        'must be [..., in, r] and [..., r, out] (transpose those of PEFT)'
      )
    if multiply and ('lora_' in name.lower() or a[-1] <= min(a[-2], b[-1])):
      pairs.append(Pair(position[name], position[partner]))
  return pairs


def _other(found: re.Match[str]) -> str:
  return found[0][:-1] + {'a': 'b', 'A': 'B'}[found[0][-1]]


def all_pairs(params: Any, rule: str) -> list[Pair]:
  """The pairs of a tree that has nothing else.

  Raises:
    InputError: a leaf that belongs to no pair, or as `find_pairs`.
  """
  pairs = find_pairs(params)
  paired = {i for pair in pairs for i in pair}
  for i, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(params)[0]):
    if i not in paired:
      raise InputError(
        f'{rule} needs pairs of LoRA factors, and {tree.path_name(path)!r} of shape {leaf.shape} '
        'belongs to none; give such leaves to another rule with for_pairs'
      )
  return pairs


def for_pairs(
  inner: optax.GradientTransformation, rest: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
  """Gives `inner` the leaves that are pairs of LoRA factors and `rest` all others (heads).

  Both see holes in place of the other's leaves; the state is that of `optax.partition`, with the
  labels 'pairs' and 'rest'.

  Raises:
    InputError: at `init`, a tree without a pair, or as `find_pairs`.
  """

  def labels(params):
    leaves, structure = jax.tree.flatten(params)
    paired = {i for pair in find_pairs(params) for i in pair}
    if leaves and not paired:
      paths = tree.paths(params)
      raise InputError(
        f'this rule needs pairs of LoRA factors, and there is none among {", ".join(paths[:3])}'
        f'{" ..." if paths[3:] else ""}; adapt the model with adapt.lora and train the a and b of '
        'its weights, or name yours lora_a [..., in, r] and lora_b [..., r, out]'
      )
    return structure.unflatten('pairs' if i in paired else 'rest' for i in range(len(leaves)))

  return optax.partition({'pairs': inner, 'rest': rest}, labels)


def trained_ranks(a: jax.Array, b: jax.Array) -> jax.Array:
  """Which of the r components are in use, `[..., r]`: a zero column of A with a zero row of B (an
  adapter padded to a larger rank) has no gradient, and no rounding may give it one."""
  return jnp.any(a != 0, -2) | jnp.any(b != 0, -1)


def on_spectrum(
  function: Callable[[jax.Array], jax.Array], matrix: jax.Array, shift: Any
) -> jax.Array:
  r"""$Q f(\Lambda + \mathrm{shift}) Q^\top$ for positive semidefinite $Q \Lambda Q^\top$,
  `[..., r, r]`, with a shift `[...]`; 0 instead of $f$ where an eigenvalue is a rounding error."""
  values, vectors = jnp.linalg.eigh(matrix)
  values = jnp.maximum(values, 0) + jnp.broadcast_to(shift, values.shape[:-1])[..., None]
  kept = values > 10 * matrix.shape[-1] * jnp.finfo(matrix.dtype).eps * values[..., -1:]
  mapped = jnp.where(kept, function(jnp.where(kept, values, 1)), 0)
  return (vectors * mapped[..., None, :]) @ vectors.mT
