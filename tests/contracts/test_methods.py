"""What every fine-tuning method keeps, over the kinds of models.

The default suite runs each method over one kind in turn and the encoder; the slow suite all pairs.
"""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest

from jaxtune import adapt, models, shard, tree
from tests.contracts.methods import (
  KINDS,
  METHODS,
  Kind,
  adapted,
  base_of,
  params_of,
  shaken,
  takes,
)

PAIRS = [(m, k) for m in METHODS for k in KINDS if takes(METHODS[m], k)]


def _first(method: str) -> set[str]:
  """Two kinds for each method, others for the next."""
  if METHODS[method].slow:
    return set()
  kinds = [k for k in KINDS if takes(METHODS[method], k)]
  at = list(METHODS).index(method)
  return {kinds[at % len(kinds)], kinds[(at + 1) % len(kinds)]}


pairs = pytest.mark.parametrize(
  'method, kind',
  [
    pytest.param(m, k, id=f'{m}-{k}', marks=() if k in _first(m) else pytest.mark.slow)
    for m, k in PAIRS
  ],
)
rows = pytest.mark.parametrize(
  'method',
  [pytest.param(m, marks=pytest.mark.slow if row.slow else ()) for m, row in METHODS.items()],
)


def test_every_method_is_under_contract():
  assert {row.method or name for name, row in METHODS.items()} == set(adapt.METHODS)


@pairs
def test_it_trains_what_it_claims_and_starts_as_the_base(method, kind):
  row, made = METHODS[method], KINDS[kind]()
  params = adapted(method, kind, made)
  trainable, frozen = adapt.trainable(params)
  paths = tree.paths(trainable)
  assert paths
  assert all(re.search(row.trains, path) or path.startswith('head/') for path in paths)
  state = optax.adam(1e-3).init(trainable)
  assert tree.count(state) == 2 * tree.count(trainable) + 1
  assert tree.count(trainable) + tree.count(frozen) == tree.count(params)
  if row.identity:
    base, first = (jax.jit(made.apply)(p) for p in (base_of(method, kind, made), params))
    np.testing.assert_allclose(first, base, rtol=1e-5, atol=1e-5)


@pairs
def test_a_gradient_reaches_all_of_it_and_merging_changes_nothing(method, kind):
  row, made = METHODS[method], KINDS[kind]()
  trainable, frozen = adapt.trainable(adapted(method, kind, made))
  trainable = shaken(trainable)

  def out(trainable):
    return made.apply(tree.combine(trainable, frozen))

  def loss(trainable):
    return ((out(trainable) - 1) ** 2).mean()

  gradient = jax.jit(jax.grad(loss))(trainable)
  missing = [p for p, g in zip(tree.paths(gradient), jax.tree.leaves(gradient), strict=True)
             if not np.abs(g).max() > 0]  # fmt: skip
  assert all(re.search(r'embed/(positions|types|tokens)|pooler', path) for path in missing), missing
  if row.merges:
    merged = adapt.merge(tree.combine(trainable, frozen))
    assert row.cuts or tree.paths(merged) == tree.paths(params_of(made))
    want = np.asarray(jax.jit(out)(trainable))
    scale = max(1.0, np.abs(want).max())
    np.testing.assert_allclose(jax.jit(made.apply)(merged), want, atol=1e-5 * scale)


def value(made: Kind, trainable, frozen):
  return made.apply(tree.combine(trainable, frozen))


@rows
def test_lanes_are_single_runs(method):
  kind = 'encoder'
  made = KINDS[kind]()
  trainable, frozen = adapt.trainable(adapted(method, kind, made))
  lanes = [shaken(trainable, size) for size in (0.0, 0.1)]
  both = jax.tree.map(lambda *x: np.stack(x), *lanes)
  got = jax.jit(jax.vmap(lambda t: value(made, t, frozen)))(both)
  for lane, row in zip(lanes, got, strict=True):
    np.testing.assert_allclose(row, value(made, lane, frozen), atol=2e-5, rtol=2e-5)


@rows
def test_remat_and_fsdp_change_nothing(method):
  kind = 'encoder'
  made = KINDS[kind]()
  params = adapted(method, kind, made)
  trainable, frozen = adapt.trainable(params)
  trainable = shaken(trainable)

  def gradient(made, trainable, frozen):
    return jax.grad(lambda t: ((value(made, t, frozen) - 1) ** 2).mean())(trainable)

  config = dataclasses.replace(made.model.config, remat=True)

  again = dataclasses.replace(made, model=models.build(config))
  want = jax.jit(lambda t, f: gradient(made, t, f))(trainable, frozen)
  grid = shard.mesh({'data': 1, 'fsdp': 8})
  placed = jax.device_put(
    tree.combine(trainable, frozen),
    shard.param_shardings(grid, params, made.model.axes(params)),
  )
  spread = [leaf for leaf in jax.tree.leaves(placed) if not leaf.sharding.is_fully_replicated]
  assert spread
  got = jax.jit(lambda t, f: gradient(again, t, f))(*tree.partition(placed, params.rules))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), got, want)


@rows
def test_a_method_needs_only_shapes_and_compiles(method):
  made = KINDS['encoder']()
  eager = adapted(method, 'encoder', made)
  shapes = jax.eval_shape(lambda: adapted(method, 'encoder', made))
  assert tree.difference(eager, shapes) is None
  assert shapes.rules == eager.rules
  compiled = jax.jit(lambda: adapted(method, 'encoder', made))()
  for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6, rtol=2e-6)
