"""What every objective keeps, over the kinds of methods: a pairwise cover.

Every objective meets every kind of method and every aspect of the contract, and every kind meets
every aspect; a small part runs in the default suite. An objective without an entry in
`tests/contracts/objectives.py` fails here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, losses, shard, train, tree
from tests.contracts.methods import METHODS, Kind, adapted, takes
from tests.contracts.objectives import (
  MODELS,
  ROWS,
  WRAPPERS,
  B,
  batch_of,
  model_of,
  objective_of,
  only,
  tiny,
  tiny_params,
  with_noise,
)

# What runs in the default suite: one of each sort on tiny models, and a case of the cover.
DEFAULT = (
  *('causal_lm', 'masked_lm', 'classification', 'token_classification', 'dpo', 'kto', 'reward'),
  *('grpo', 'info_nce', 'distillation', 'kl_to_reference'),
)
DEFAULT_CASES = (('reward', 'freeze', 'shards'),)

# Methods by what trains, and so by what a gradient goes through.
METHOD_KINDS = {
  'weights': ('full', 'freeze', 'norms', 'last_layers', 'bitfit', 'probe'),
  'products': (
    *('lora', 'ia3', 'dora', 'vera', 'qlora', 'loha', 'lokr', 'adalora', 'qdora', 'lora_pissa'),
  ),
  'parts': ('prompt', 'bottleneck', 'prefix', 'trainable_tokens', 'p_tuning', 'lora_loftq'),
}


def made(name, method):
  """The model, what trains and what is frozen; what trains has left its start."""
  model = model_of(name)
  params = ROWS[name].prepare(adapted(method, MODELS[ROWS[name].model][0], Kind(model, ())))
  trainable, frozen = adapt.trainable(params)
  return model, moved(trainable), frozen


def moved(trainable, size=0.1):
  """The trained leaves as training might have left them."""
  rng = np.random.default_rng(3)
  return jax.tree.map(lambda x: x + np.asarray(size * rng.normal(size=x.shape), x.dtype), trainable)


def graded(name, model):
  """`(trainable, frozen, batch) -> Loss and the gradient of its total`, without dropout."""
  objective = objective_of(name, model)

  def total(trainable, frozen, batch):
    loss = objective(tree.combine(trainable, frozen), batch, None)
    return loss.total, loss

  def both(trainable, frozen, batch):
    gradient, loss = jax.grad(total, has_aux=True)(trainable, frozen, batch)
    return loss, gradient

  return both


def cut(x):
  """Rows as four micro-batches."""
  return x.reshape(-1, 4, *x.shape[1:]).swapaxes(0, 1)


def check_sums(loss, gradient):
  assert isinstance(loss, losses.Loss)
  assert all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loss))
  assert loss.weight > 0 and all(np.isfinite(leaf) for leaf in jax.tree.leaves(loss))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


def accumulates(name, method):
  """Micro-batches add up to the batch; where rows are seen together, to what they are apart."""
  model, trainable, frozen = made(name, method)
  compute, batch = jax.jit(graded(name, model)), batch_of(name)

  @jax.jit
  def scanned(trainable, frozen, micro):
    parts = jax.lax.scan(lambda _, one: (None, compute(trainable, frozen, one)), None, micro)[1]
    return jax.tree.map(lambda x: x.sum(axis=0), parts)

  got = scanned(trainable, frozen, jax.tree.map(cut, batch))
  if ROWS[name].within:
    micro = [jax.tree.map(lambda x, i=i: cut(x)[i], batch) for i in range(4)]
    parts = [compute(trainable, frozen, one) for one in micro]
    close(got, functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts))
  else:
    close(got, compute(trainable, frozen, batch))


def shards(name, method):
  """On eight devices, rows and weights cut, it is what it is on one."""
  model, trainable, frozen = made(name, method)
  compute, batch = jax.jit(graded(name, model)), batch_of(name)
  want = compute(trainable, frozen, batch)
  grid = shard.mesh({'data': 4, 'fsdp': 2})
  params = tree.combine(trainable, frozen)
  axes = model.axes(params)
  placed = jax.device_put(params, shard.param_shardings(grid, params, axes))
  got = compute(*adapt.trainable(placed), shard.place_batch(grid, batch))
  close(got, want)


def sweeps(name, method):
  """Lanes of a train step over one frozen base are single runs."""
  model, trainable, frozen = made(name, method)
  optimizer = optax.adamw(1e-2)
  step = train.make_step(objective_of(name, model), optimizer, accumulate=2)
  lanes = [trainable, moved(trainable)]
  states = [train.init_state(lane, optimizer, jax.random.key(1)) for lane in lanes]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
  batch = batch_of(name)
  got, metrics = jax.jit(jax.vmap(step, (0, None, None)))(stacked, frozen, batch)
  single = jax.jit(step)
  for lane, state in enumerate(states):
    want, alone = single(state, frozen, batch)
    close(jax.tree.map(lambda x, i=lane: x[i], metrics), alone)
    assert np.isfinite(alone['loss']) and alone['grad_norm'] > 0
    trained = jax.tree.map(lambda x, i=lane: x[i], got.trainable)
    # Adam's first step is the sign of the gradient: rounding turns what is about zero.
    far = jax.tree.map(lambda a, b: jnp.mean(jnp.abs(a - b) > 1e-3), trained, want.trainable)
    assert max(jax.tree.leaves(far)) < 0.1


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=() if n in DEFAULT else (pytest.mark.slow,)) for n in ROWS]
)
def test_lanes_padding_fill_and_parts_change_nothing(name):
  """On a tiny model, whose one compilation serves all of it; nor does it change to run eagerly."""
  trainable, frozen = adapt.trainable(tiny_params(name))
  lanes = jax.tree.map(lambda x: np.stack([moved(x), moved(x, 0.5)]), trainable)
  compute = jax.jit(jax.vmap(graded(name, tiny(name)), (0, None, None)))
  batch = batch_of(name)
  whole = loss, gradient = compute(lanes, frozen, batch)
  for lane in (0, 1):
    check_sums(*jax.tree.map(lambda x, i=lane: x[i], whole))
  first = tree.combine(jax.tree.map(lambda x: x[0], lanes), frozen)
  eager = objective_of(name, tiny(name))(first, batch, None)
  close(eager, jax.tree.map(lambda x: x[0], loss))
  assert np.abs(np.diff(jax.tree.leaves(gradient)[0], axis=0)).max() > 0
  swapped = compute(jax.tree.map(lambda x: x[::-1], lanes), frozen, batch)
  close(jax.tree.map(lambda x: x[::-1], swapped), whole)
  close(compute(lanes, frozen, with_noise(batch)), whole)
  parts = []
  for rows in (slice(0, B // 2), slice(B // 2, B)):
    parts.append(compute(lanes, frozen, only(batch, rows)))
    close(compute(lanes, frozen, only(batch, rows, copy=True)), parts[-1])
  if not ROWS[name].within:
    close(jax.tree.map(jnp.add, *parts), whole)
  assert loss.weight[0] > parts[0][0].weight[0]


# Lanes, padding and eager runs are the tiny model's.
ASPECTS = {f.__name__: f for f in (accumulates, shards, sweeps)}


def able(name, kind):
  """The methods of a kind that train something of this objective's model."""
  family, _ = MODELS[ROWS[name].model]
  found = [method for method in METHOD_KINDS[kind] if takes(METHODS[method], family)]
  return [m for m in found if m != 'probe' or model_of(name).config.outputs]


def cover():
  """`(objective, method, aspect)`: kinds go round the aspects, and methods round the kinds."""
  for at, name in enumerate(ROWS):
    for number, kind in enumerate(METHOD_KINDS):
      methods = able(name, kind)
      yield name, methods[at % len(methods)], list(ASPECTS)[(at + number) % len(ASPECTS)]


CASES = list(cover())


def test_every_objective_has_a_row_in_the_contract():
  missing = set(losses.OBJECTIVES) - set(ROWS)
  assert not missing, f'add {sorted(missing)} to ROWS in tests/contracts/objectives.py'
  assert set(ROWS) - set(losses.OBJECTIVES) == set(WRAPPERS)


def test_the_cover_is_pairwise():
  kinds = {method: kind for kind, methods in METHOD_KINDS.items() for method in methods}
  assert set(kinds) == set(METHODS), 'a method of tests/contracts/methods.py belongs to no kind'
  assert {method for _, method, _ in CASES} == set(METHODS)
  assert {(n, kinds[m]) for n, m, _ in CASES} == {(n, k) for n in ROWS for k in METHOD_KINDS}
  assert {(n, a) for n, _, a in CASES} == {(n, a) for n in ROWS for a in ASPECTS}
  assert {(kinds[m], a) for _, m, a in CASES} == {(k, a) for k in METHOD_KINDS for a in ASPECTS}


@pytest.mark.parametrize(
  'name, method, aspect',
  [
    pytest.param(*case, marks=() if case in DEFAULT_CASES else (pytest.mark.slow,))
    for case in CASES
  ],
)
def test_contract(name, method, aspect):
  ASPECTS[aspect](name, method)


def close(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = max(1.0, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=5e-5, atol=2e-5 * scale)
