"""The step is a pure function: of its batch's rows, under vmap, jit, scan and on many devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtune import losses, models, optim, shard, train, tree
from jaxtune.losses import Loss
from jaxtune.optim.accumulate import accumulate_by_weight
from jaxtune.optim.observe import observe
from jaxtune.optim.spikes import skip_spikes


def stack(batches, count):
  rows = [next(batches) for _ in range(count)]
  return jax.tree.map(lambda *x: np.stack(x), *rows)


def run(step, state, frozen, batches, steps=5):
  out = []
  for _ in range(steps):
    state, metrics = step(state, frozen, next(batches))
    out.append(float(metrics['loss']))
  return state, np.array(out)


def test_step_is_gradient_descent_on_the_mean():
  def objective(params, batch, key):
    error = batch['x'] @ params['w'] - batch['y']
    return Loss(jnp.sum(batch['weight'] * error**2), jnp.sum(batch['weight']), {})

  rng = np.random.default_rng(0)
  x, y, weight = rng.normal(size=(6, 3)), rng.normal(size=6), np.array([1, 1, 0.5, 1, 0, 2.0])
  w = rng.normal(size=3)
  step = train.make_step(objective, optim.gradient_descent(0.1))
  params = {'w': jnp.array(w, jnp.float32)}
  state = train.init_state(params, optim.gradient_descent(0.1), jax.random.key(0))
  batch = {'x': x, 'y': y, 'weight': weight}
  state, metrics = jax.jit(step)(state, {'w': None}, jax.tree.map(jnp.float32, batch))
  gradient = 2 * x.T @ (weight * (x @ w - y)) / weight.sum()
  np.testing.assert_allclose(state.trainable['w'], w - 0.1 * gradient, rtol=1e-5)
  np.testing.assert_allclose(metrics['grad_norm'], np.linalg.norm(gradient), rtol=1e-5)
  loss = (weight * (x @ w - y) ** 2).sum() / weight.sum()
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
  assert int(state.step) == 1


@pytest.mark.slow
def test_plain_optax_optimizers_work_and_have_no_learning_rate_to_show(tiny):
  step = jax.jit(train.make_step(tiny.objective, optax.adam(1e-3)))
  state = train.init_state(tiny.trainable, optax.adam(1e-3), jax.random.key(0))
  _, metrics = step(state, tiny.frozen, next(tiny.batches()))
  assert 'learning_rate' not in metrics


def test_logged_learning_rate_is_the_one_that_was_used(tiny):
  optimizer = tiny.optimizer()
  step = jax.jit(train.make_step(tiny.objective, optimizer))
  state = train.init_state(tiny.trainable, optimizer, jax.random.key(0))
  shape = optim.schedule('cosine', steps=20, warmup=2)
  batches = tiny.batches()
  for number in range(4):
    state, metrics = step(state, tiny.frozen, next(batches))
    np.testing.assert_allclose(metrics['learning_rate'], 1e-2 * shape(number), rtol=1e-6)


def test_what_wrappers_keep_is_among_the_metrics(tiny):
  labels = [('/a$', 'a'), ('', 'rest')]
  optimizer = skip_spikes(observe(tiny.optimizer(), labels))
  step = jax.jit(train.make_step(tiny.objective, optimizer))
  state = train.init_state(tiny.trainable, optimizer, jax.random.key(0))
  new, metrics = step(state, tiny.frozen, next(tiny.batches()))
  whole = np.hypot(metrics['grad_norm/a'], metrics['grad_norm/rest'])
  np.testing.assert_allclose(metrics['grad_norm'], whole, rtol=1e-5)
  np.testing.assert_allclose(metrics['spikes/norm'], whole, rtol=1e-5)
  assert int(metrics['spikes/skipped']) == 0 and float(metrics['update_ratio/a']) > 0
  bad = jax.tree.map(lambda x: x if x is None else x * jnp.nan, tiny.frozen)
  after, metrics = step(new, bad, next(tiny.batches()))
  assert int(metrics['spikes/skipped']) == 1 and not np.isfinite(metrics['loss'])
  jax.tree.map(np.testing.assert_array_equal, after.trainable, new.trainable)


def test_the_optimizer_gets_the_weight_of_the_batch():
  """Two calls, of 1 and of 3 rows, are one step on the four."""

  def objective(params, batch, key):
    error = batch['x'] @ params['w'] - batch['y']
    return Loss(jnp.sum(batch['weight'] * error**2), jnp.sum(batch['weight']), {})

  rng = np.random.default_rng(0)
  batch = {'x': rng.normal(size=(4, 3)), 'y': rng.normal(size=4), 'weight': np.ones(4)}
  batch = jax.tree.map(jnp.float32, batch)
  params, frozen = {'w': jnp.ones(3)}, {'w': None}

  def last(optimizer, batches):
    step = jax.jit(train.make_step(objective, optimizer))
    state = train.init_state(params, optimizer, jax.random.key(0))
    for part in batches:
      state, _ = step(state, frozen, part)
    return state.trainable['w']

  parts = [{**batch, 'weight': jnp.asarray(w, jnp.float32)} for w in ([1, 0, 0, 0], [0, 1, 1, 1])]
  rule = optim.gradient_descent(0.1)
  cut, whole = last(accumulate_by_weight(rule, 2), parts), last(rule, [batch])
  np.testing.assert_allclose(cut, whole, rtol=1e-6)


@pytest.mark.parametrize(
  'accumulate', [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8))]
)
def test_accumulation_equals_the_large_batch(accumulate):
  """Rows have very different numbers of supervised tokens: means of means would be wrong."""
  model = models.decoder(
    models.DecoderConfig(
      vocabulary=50, width=16, hidden=32, layers=2, heads=2, kv_heads=1, head_width=8
    )
  )
  params = model.init(jax.random.key(0))
  rng = np.random.default_rng(1)
  batch = {
    'tokens': rng.integers(0, 50, (8, 12), dtype=np.int32),
    'mask': np.ones((8, 12), bool),
    'supervised': np.arange(12)[None] >= rng.integers(1, 11, 8)[:, None],
    'weight': np.ones(8, np.float32),
  }
  nothing = jax.tree.map(lambda x: None, params)
  tx = optax.sgd(1.0)
  objective = losses.causal_lm(model)
  results = []
  for parts in (1, accumulate):
    step = jax.jit(train.make_step(objective, tx, accumulate=parts))
    state = train.init_state(params, tx, jax.random.key(0))
    results.append(step(state, nothing, batch))
  (whole, metrics), (cut, cut_metrics) = results
  for name in metrics:
    np.testing.assert_allclose(metrics[name], cut_metrics[name], rtol=2e-6)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
    if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
      np.testing.assert_allclose(a, b, atol=1e-6)


def test_vmap_over_lanes_equals_separate_runs(tiny):
  """Lanes of (trainable, state) with their own rates and keys over one frozen base."""
  optimizer = tiny.optimizer()
  step = train.make_step(tiny.objective, optimizer)

  def lane(rate, seed):
    state = train.init_state(tiny.trainable, optimizer, jax.random.key(seed))
    return state._replace(opt=optim.set_hyperparameters(state.opt, learning_rate=rate))

  rates = [1e-3, 1e-2, 3e-2]
  lanes = [lane(rate, seed) for seed, rate in enumerate(rates)]
  batches = tiny.batches()
  steps = [next(batches) for _ in range(4)]
  many = jax.tree.map(lambda *x: jnp.stack(x), *lanes)
  stepped = jax.jit(jax.vmap(step, in_axes=(0, None, None)))
  alone = jax.jit(step)
  for batch in steps:
    many, metrics = stepped(many, tiny.frozen, batch)
    singles = [alone(state, tiny.frozen, batch) for state in lanes]
    lanes = [state for state, _ in singles]
    expected = [float(m['loss']) for _, m in singles]
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  for index, state in enumerate(lanes):
    for a, b in zip(jax.tree.leaves(many.trainable), jax.tree.leaves(state.trainable), strict=True):
      np.testing.assert_allclose(a[index], b, atol=2e-5)
  assert len(set(np.asarray(metrics['loss']).tolist())) == 3  # the lanes do differ


def test_lanes_do_not_copy_the_base(tiny):
  """The arguments of the compiled program are the lanes, one base and the batch."""
  optimizer = tiny.optimizer()
  state = train.init_state(tiny.trainable, optimizer, jax.random.key(0))
  many = jax.tree.map(lambda x: jnp.stack([x] * 3), state)
  batch = next(tiny.batches())
  step = jax.vmap(train.make_step(tiny.objective, optimizer), in_axes=(0, None, None))
  used = jax.jit(step, keep_unused=True).lower(many, tiny.frozen, batch).compile()
  key_bytes = 3 * 8
  expected = sum(map(tree.size, (many.trainable, many.opt, many.step, tiny.frozen, batch)))
  assert used.memory_analysis().argument_size_in_bytes == expected + key_bytes


def test_step_lowers_from_shapes_alone_to_the_same_program(tiny):
  optimizer = tiny.optimizer()
  step = train.make_step(tiny.objective, optimizer)
  state = train.init_state(tiny.trainable, optimizer, jax.random.key(0))
  batch = next(tiny.batches())

  def initial(params, key):
    trainable, frozen = tree.partition(params, tiny.params.rules)
    return train.init_state(trainable, optimizer, key), frozen

  shapes = jax.eval_shape(lambda: tiny.params)
  state_shapes, frozen_shapes = jax.eval_shape(initial, shapes, jax.random.key(0))
  batch_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  real = jax.make_jaxpr(step)(state, tiny.frozen, batch)
  planned = jax.make_jaxpr(step)(state_shapes, frozen_shapes, batch_shapes)
  assert str(real) == str(planned)
  compiled = jax.jit(step).lower(state_shapes, frozen_shapes, batch_shapes).compile()
  _, metrics = compiled(state, tiny.frozen, batch)
  _, expected = jax.jit(step)(state, tiny.frozen, batch)
  assert float(metrics['loss']) == float(expected['loss'])


def test_scan_equals_loop(tiny):
  optimizer = tiny.optimizer()
  step = train.make_step(tiny.objective, optimizer)
  state = train.init_state(tiny.trainable, optimizer, jax.random.key(0))
  stacked = stack(tiny.batches(), 4)
  scanned, metrics = jax.lax.scan(lambda s, b: step(s, tiny.frozen, b), state, stacked)
  looped, expected = run(jax.jit(step), state, tiny.frozen, tiny.batches(), 4)
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  assert int(scanned.step) == int(looped.step) == 4


def test_donation_never_takes_the_arrays_of_the_caller(tiny):
  optimizer = tiny.optimizer()
  key = jax.random.key(0)
  state = train.init_state(tiny.trainable, optimizer, key)
  step = jax.jit(train.make_step(tiny.objective, optimizer), donate_argnums=0)
  run(step, state, tiny.frozen, tiny.batches(), 2)
  for leaf in jax.tree.leaves((tiny.params, key)):
    assert not leaf.is_deleted()


def sharded(tiny, sizes):
  """The state and step of a run on a mesh, as experiments make them."""
  mesh = shard.mesh(sizes)
  optimizer = tiny.optimizer()
  shardings = shard.param_shardings(mesh, tiny.params, tiny.model.axes(tiny.params))
  params = jax.device_put(tiny.params, shardings)
  trainable, frozen = tree.partition(params, tiny.params.rules)
  state = train.init_state(trainable, optimizer, jax.random.key(0))
  states = shard.state_shardings(mesh, state, params, shardings)
  step = jax.jit(
    train.make_step(tiny.objective, optimizer),
    donate_argnums=0,
    out_shardings=(states, shard.replicated(mesh)),
  )
  return mesh, jax.device_put(state, states), frozen, step


@pytest.mark.parametrize(
  'sizes',
  [
    {'fsdp': 8},
    *(pytest.param(s, marks=pytest.mark.slow) for s in ({'data': 8}, {'data': 2, 'fsdp': 4})),
  ],
  ids=str,
)
def test_sharded_equals_one_device(tiny, sizes):
  optimizer = tiny.optimizer()
  alone = jax.jit(train.make_step(tiny.objective, optimizer))
  state = train.init_state(tiny.trainable, optimizer, jax.random.key(0))
  _, expected = run(alone, state, tiny.frozen, tiny.batches())
  mesh, state, frozen, step = sharded(tiny, sizes)
  placed = (shard.place_batch(mesh, batch) for batch in tiny.batches())
  state, first = run(step, state, frozen, placed, 1)
  compiles = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **kwargs: compiles.append(event) if 'compile' in event else None
  )
  state, rest = run(step, state, frozen, placed, 4)
  jax.monitoring.clear_event_listeners()
  np.testing.assert_allclose([*first, *rest], expected, rtol=1e-5)
  assert not compiles  # the state comes out as it went in: one compile serves all steps
  if 'fsdp' in sizes:
    up = frozen['encoder']['0-2']['mlp']['up'].base
    assert up.addressable_shards[0].data.size == up.size // sizes['fsdp']
    leaves = jax.tree_util.tree_flatten_with_path(state.opt)[0]
    moments = [leaf for path, leaf in leaves if tree.path_name(path).endswith('mlp/up/a')]
    assert len(moments) == 2  # mu and nu lie where their parameter does
    assert all(m.addressable_shards[0].data.size == m.size // sizes['fsdp'] for m in moments)


def test_pmap_equals_one_device(tiny):
  optimizer = tiny.optimizer()
  objective = losses.classification(
    models.encoder(dataclasses.replace(tiny.model.config, dropout=0.0))
  )
  alone = jax.jit(train.make_step(objective, optimizer))
  state = train.init_state(tiny.trainable, optimizer, jax.random.key(0))
  _, expected = run(alone, state, tiny.frozen, tiny.batches())
  step = jax.pmap(
    train.make_step(objective, optimizer, axis='data'), axis_name='data', in_axes=(0, None, 0)
  )
  many = jax.tree.map(lambda x: jnp.stack([x] * 8), state)
  batches = tiny.batches()
  found = []
  for _ in range(5):
    batch = {k: v.reshape(8, -1, *v.shape[1:]) for k, v in next(batches).items()}
    many, metrics = step(many, tiny.frozen, batch)
    found.append(float(metrics['loss'][0]))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_an_optimizer_makes_is_cut_like_the_parameters_from_the_start():
  mesh = shard.mesh({'fsdp': 8})
  params = {'w': jax.device_put(jnp.ones((16, 3)), NamedSharding(mesh, P('fsdp')))}
  rule, key = optax.adam(1e-3), jax.random.key(0)
  shapes = jax.eval_shape(lambda x: train.init_state(x, rule, key), params)
  own = jax.tree.map(lambda x: x.sharding, params)
  shardings = shard.state_shardings(mesh, shapes, params, own)
  state = train.init_state(params, rule, key, shardings)
  assert jax.tree.map(lambda x: x.sharding, state) == shardings
  assert state.opt[0].mu['w'].sharding.spec == P('fsdp')
  jax.tree.map(lambda x: x.delete(), state)  # as a step that donates it
  assert params['w'].sum() == 48 and jax.random.key_data(key).size
