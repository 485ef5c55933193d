"""EVA: LoRA whose A starts as the directions in which a layer's inputs vary most.

Paischer et al. 2024, arXiv:2410.07170.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import ops, tree
from jaxtune.adapt.adapted import Adapted, rules_of
from jaxtune.adapt.lora import LoRA, path_key
from jaxtune.adapt.lora_starts import Residual
from jaxtune.optim.in_turn import after
from jaxtune.typing import Batch, InputError, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recorder:
  """A weight whose inputs can be had: the gradient of `moments` is `sum x x^T`, not of the loss.

  A leaf cannot return anything beside its product, least of all under scan; gradients come back
  stacked by layer, and sorted by expert. A row counts if the loss depends on its product, so
  padding does not.

  Attributes:
    base: `[..., in, out]`, an array or another weight leaf.
    probe: `[..., in, k]`, to get `sum x x^T probe` and never a matrix of `in * in`; None for all.
    moments: `[..., in, k or in]`, of any values.
  """

  base: Any
  probe: jax.Array | None
  moments: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def dot(self, x: jax.Array) -> jax.Array:
    return _recorded(ops.dot(x, self.base), x, self.probe, self.moments)

  def materialize(self) -> jax.Array:
    raise InputError('eva needs the inputs of products, and this module takes whole matrices')

  def take(self, ids: jax.Array) -> jax.Array:
    del ids
    raise InputError('eva needs inputs that are activations, and those of embeddings are tokens')

  dot_transposed = take


@jax.custom_vjp
def _recorded(y: jax.Array, x: jax.Array, probe: Any, moments: jax.Array) -> jax.Array:
  del x, probe, moments
  return y


def _forward(y: jax.Array, x: jax.Array, probe: Any, moments: jax.Array) -> tuple[Any, Any]:
  del moments
  return y, (x, probe)


def _backward(kept: Any, gradient: jax.Array) -> tuple[Any, ...]:
  x, probe = kept
  matters = jnp.any(gradient != 0, axis=-1, keepdims=True)
  rows = jnp.where(matters, x, 0).reshape(-1, x.shape[-1]).astype(jnp.float32)
  moments = rows.T @ (rows if probe is None else rows @ probe)
  return gradient, jnp.zeros_like(x), jax.tree.map(jnp.zeros_like, probe), moments


_recorded.defvjp(_forward, _backward)


def eva(
  key: Key,
  params: Params,
  objective: Callable[..., Any],
  batches: Iterable[Batch],
  *,
  passes: int | None = None,
) -> Adapted:
  """LoRA's A from data: `params = eva(key, lora(key, params, 16), objective, batches)`.

  The R columns of A are the right singular vectors of the layer's inputs `[N, in]` with the largest
  singular values; B stays zero, so the first forward pass stays the base model's. Inputs are of all
  batches and of the rows on which the objective depends.

  Every weight keeps its rank: the paper's redistribution by explained variance is left out, as in
  PEFT with `rho=1`. PEFT subtracts the mean of the inputs first, the paper does not.

  Args:
    key: of the random start, where `passes` is given.
    params: what `lora` returned, on a built-in model.
    objective: of `jaxtune.losses`, or any `(params, batch, None)` with a scalar `total`.
    batches: a few, on the devices where the parameters are.
    passes: None for one pass that sums `[in, in]` float32 a weight and is exact. Where these do not
      fit, as many passes of subspace iteration, each over all batches, with `[in, 2 R]`.

  Raises:
    InputError: no LoRA, one that has been trained or has changed its base, no batches, a user's own
      module.
  """
  rules_of(params)  # refuses what no method was applied to
  batches = list(batches)
  chosen = _fresh(params)
  if not batches or (passes is not None and passes < 1):
    raise InputError('eva: there are no batches to take; give some, and passes of at least 1')

  @functools.partial(jax.jit, donate_argnums=0)
  def add(moments: Params, probes: Params, params: Params, batch: Batch) -> Params:
    def total(moments: Params) -> jax.Array:
      def record(path: str, leaf: Any) -> Any:
        return Recorder(leaf, probes[path], moments[path]) if path in chosen else leaf

      return objective(tree.map_weights(record, params), batch, None).total

    with jax.default_matmul_precision('highest'):
      return jax.tree.map(jnp.add, moments, jax.grad(total)(moments))

  probes: dict[str, Any] = {}
  done = None
  for path, leaf in chosen.items():
    *lead, inputs, rank = leaf.a.shape
    probes[path] = None
    if passes is not None:
      sketch = (*lead, inputs, min(2 * rank, inputs))
      done = _orthonormal(jax.random.normal(path_key(key, path), sketch), done)
      probes[path] = done
  for left in reversed(range(passes or 1)):
    moments = {
      path: jnp.zeros((*leaf.a.shape[:-1], leaf.a.shape[-2] if p is None else p.shape[-1]))
      for (path, leaf), p in zip(chosen.items(), probes.values(), strict=True)
    }
    for batch in batches:
      moments = add(moments, probes, params, batch)
    for path in chosen if left else ():
      probes[path] = done = _orthonormal(moments[path], done)
  started = {}
  for path, leaf in chosen.items():
    done = started[path] = _largest(moments[path], probes[path], leaf.a.shape[-1], done)
  made = tree.map_weights(
    lambda path, leaf: dataclasses.replace(leaf, a=started[path]) if path in started else leaf,
    params,
  )
  return made


def _fresh(params: Params) -> dict[str, LoRA]:
  """The LoRA leaves by their paths."""
  found = {path: leaf for path, leaf in tree.named_weights(params) if isinstance(leaf, LoRA)}
  if not found:
    raise InputError('eva: there is no LoRA to start; call params = adapt.lora(key, params) first')
  for path, leaf in found.items():
    if re.match('embed/', path):
      raise InputError(f'eva: {path!r} is an embedding, whose inputs are tokens; narrow the select')
    if isinstance(leaf.base, Residual) or np.any(leaf.b):
      raise InputError(
        f'eva: the LoRA of {path!r} is trained already, or has another start; make it afresh with '
        'adapt.lora'
      )
  return found


def _orthonormal(matrix: jax.Array, done: Any) -> jax.Array:
  return jnp.linalg.qr(after(matrix, done))[0]


def _largest(moments: jax.Array, probe: Any, rank: int, done: Any) -> jax.Array:
  """The eigenvectors `[..., in, R]` of the largest eigenvalues, those in the probe's span."""
  with jax.default_matmul_precision('highest'):
    within = moments if probe is None else probe.mT @ moments
    vectors = jnp.linalg.eigh(after(within, done))[1][..., ::-1][..., :rank]
    return vectors if probe is None else probe @ vectors
