"""What every fine-tuning method keeps, over the kinds of models: a pairwise cover.

Every method meets every kind of model it takes and every aspect of the contract, and every kind
meets every aspect; a fifth of it runs in the default suite.
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
  OWN,
  adapted,
  base_of,
  params_of,
  shaken,
  takes,
)


def starts(method, kind, made):
  """It trains what it claims and holds state for that alone; its first pass is the base's."""
  row = METHODS[method]
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


def merges(method, kind, made):
  """A gradient reaches all that trains, and the merged parameters compute the same."""
  row = METHODS[method]
  trainable, frozen = adapt.trainable(adapted(method, kind, made))
  trainable = shaken(trainable)

  def out(trainable):
    return made.apply(tree.combine(trainable, frozen))

  def loss(trainable):
    return ((out(trainable) - 1) ** 2).mean()

  gradient = jax.jit(jax.grad(loss))(trainable)
  leaves = zip(tree.paths(gradient), jax.tree.leaves(gradient), strict=True)
  missing = [path for path, g in leaves if not np.abs(g).max() > 0]
  assert all(re.search(r'embed/(positions|types|tokens)|pooler', path) for path in missing), missing
  if row.merges:
    merged = adapt.merge(tree.combine(trainable, frozen))
    assert row.cuts or tree.paths(merged) == tree.paths(params_of(made))
    want = np.asarray(jax.jit(out)(trainable))
    scale = max(1.0, np.abs(want).max())
    np.testing.assert_allclose(jax.jit(made.apply)(merged), want, atol=1e-5 * scale)


def lanes(method, kind, made):
  """Lanes of one program over one frozen base are single runs."""
  trainable, frozen = adapt.trainable(adapted(method, kind, made))
  single = [shaken(trainable, size) for size in (0.0, 0.1)]
  apply = jax.jit(lambda t: made.apply(tree.combine(t, frozen)))
  got = jax.jit(jax.vmap(apply))(jax.tree.map(lambda *x: np.stack(x), *single))
  for lane, row in zip(single, got, strict=True):
    want = np.asarray(apply(lane))
    scale = max(1.0, np.abs(want).max())
    np.testing.assert_allclose(row, want, atol=2e-5 * scale, rtol=2e-5)


def shards(method, kind, made):
  """On eight devices, cut by FSDP and with remat, gradients are those of one device."""
  params = adapted(method, kind, made)
  trainable, frozen = adapt.trainable(params)
  trainable = shaken(trainable)

  def gradient(made):
    def loss(trainable, frozen):
      return ((made.apply(tree.combine(trainable, frozen)) - 1) ** 2).mean()

    return jax.jit(jax.grad(loss))

  config = dataclasses.replace(made.model.config, remat='full')
  again = dataclasses.replace(made, model=models.build(config))
  want = gradient(made)(trainable, frozen)
  grid = shard.mesh({'data': 1, 'fsdp': 8})
  placed = jax.device_put(
    tree.combine(trainable, frozen),
    shard.param_shardings(grid, params, made.model.axes(params)),
  )
  assert [leaf for leaf in jax.tree.leaves(placed) if not leaf.sharding.is_fully_replicated]
  got = gradient(again)(*tree.partition(placed, params.rules))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-3), got, want)


def compiles(method, kind, made):
  """The method itself needs only shapes, and compiled it gives what it gives at once."""
  eager = adapted(method, kind, made)
  shapes = jax.eval_shape(lambda: adapted(method, kind, made))
  assert tree.difference(eager, shapes) is None
  assert shapes.rules == eager.rules
  compiled = jax.jit(lambda: adapted(method, kind, made))()
  for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6, rtol=2e-6)


ASPECTS = {f.__name__: f for f in (starts, merges, lanes, shards, compiles)}


def cover():
  """`(method, kind, aspect)`: the aspects go round, and what a method has too few kinds for is
  taken by its first ones."""
  for at, method in enumerate(METHODS):
    kinds = [kind for kind in KINDS if takes(METHODS[method], kind)]
    left = list(ASPECTS)[at % 5 :] + list(ASPECTS)[: at % 5]
    turns = list(left)
    for kind in kinds:
      able = [a for a in left or turns if not (a == 'shards' and kind in OWN)]
      aspect = (able or [a for a in turns if a != 'shards'])[0]
      if aspect in left:
        left.remove(aspect)
      yield method, kind, aspect
    for number, aspect in enumerate(left):
      yield method, kinds[number % len(kinds)], aspect


CASES = list(cover())


def test_the_cover_is_pairwise():
  assert {row.method or name for name, row in METHODS.items()} == set(adapt.METHODS)
  assert {(m, k) for m, k, _ in CASES} == {
    (m, k) for m, row in METHODS.items() for k in KINDS if takes(row, k)
  }
  assert {(m, a) for m, _, a in CASES} == {(m, a) for m in METHODS for a in ASPECTS}
  pairs = {(k, a) for k in KINDS for a in ASPECTS if not (a == 'shards' and k in OWN)}
  assert {(k, a) for _, k, a in CASES} == pairs


def _slow(number, method, kind, aspect):
  costly = kind == 'encoder_decoder' or (kind, aspect) == ('mixture', 'shards')
  return (pytest.mark.slow,) if number % 5 or costly or METHODS[method].slow else ()


@pytest.mark.parametrize(
  'method, kind, aspect',
  [pytest.param(*case, marks=_slow(number, *case)) for number, case in enumerate(CASES)],
)
def test_contract(method, kind, aspect):
  ASPECTS[aspect](method, kind, KINDS[kind]())
