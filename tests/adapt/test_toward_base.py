"""Penalties towards the start, against float64 and against what they are sums of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, losses, models, shard, train, tree
from jaxtune.typing import InputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
  return np.asarray(RNG.normal(size=shape), np.float32)


def params():
  return {
    'decoder': {'0-1': {'attn': {'q': normal(2, 6, 5)}, 'norm': {'scale': normal(2, 6)}}},
    'head': {'dense': normal(6, 3)},
  }


def moved(adapted, seed=1):
  """What trains as training might have left it; what is held stays."""
  trainable, frozen = adapt.trainable(adapted)
  rng = np.random.default_rng(seed)
  return tree.combine(
    jax.tree.map(lambda x: x + np.asarray(rng.normal(size=x.shape), x.dtype), trainable), frozen
  )


def square(x):
  return float(np.sum(np.square(np.float64(x))))


def test_distance_of_full_fine_tuning_and_size_of_a_new_head():
  start = adapt.with_start(adapt.full(KEY, params()))
  now = moved(start)
  want = 0.3 / 2 * sum(
    square(np.float64(a) - np.float64(b))
    for a, b in zip(jax.tree.leaves(now['decoder']), jax.tree.leaves(start['decoder']), strict=True)
  ) + 0.7 / 2 * square(now['head']['dense'])
  got = jax.jit(adapt.l2_sp(0.3, 0.7))(now)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert got.dtype == jnp.float32
  want += 0.3 / 2 * square(now['head']['dense'] - start['head']['dense'])
  want -= 0.7 / 2 * square(now['head']['dense'])
  np.testing.assert_allclose(jax.jit(adapt.l2_sp(0.3, new=r'(?!)'))(now), want, rtol=1e-6)


def delta(leaf):
  if not isinstance(leaf, adapt.LoRA):
    return 0
  product = np.float64(leaf.scale)[:, None, None] * (np.float64(leaf.a) @ np.float64(leaf.b))
  return product + delta(leaf.base)


@pytest.mark.parametrize('nested', [False, True])
def test_distance_of_lora_is_that_of_the_weight_that_it_stands_for(nested):
  base = params()
  # A start away from zero, as PiSSA's.
  adapted = moved(adapt.lora(KEY, base, 2, select='attn/q'), 5)
  if nested:
    adapted = adapt.lora(KEY, adapted, 3, select='attn/q')
  start = adapt.with_start(adapted)
  now = moved(start, 6)
  difference = delta(now['decoder']['0-1']['attn']['q']) - delta(
    adapted['decoder']['0-1']['attn']['q']
  )
  penalty = jax.jit(adapt.l2_sp(1.0, 0.0))
  np.testing.assert_allclose(penalty(now), square(difference) / 2, rtol=1e-5)
  assert penalty(start) == 0
  # Only what trains is held, and of a matrix that is not adapted nothing.
  assert tree.size(start) - tree.size(adapted) == tree.size(adapt.trainable(adapted)[0])


def test_only_the_fields_that_train_are_compared():
  leaf = adapt.LoRA(normal(6, 5), normal(6, 2), normal(2, 5), jnp.float32(2))
  start = adapt.Adapted({'q': leaf}, (('q/b$', True), ('', False)))
  ones = jax.tree.map(jnp.ones_like, adapt.trainable(start)[0])
  now = moved(adapt.with_start(start, ones))
  want = 3 / 2 * square(np.float64(now['q'].b) - np.float64(leaf.b))
  np.testing.assert_allclose(jax.jit(adapt.ewc(3.0))(now), want, rtol=1e-6)
  want = square(np.float64(leaf.a) @ (np.float64(now['q'].b) - np.float64(leaf.b)))
  np.testing.assert_allclose(jax.jit(adapt.l2_sp(1.0))(now), 4 / 2 * want, rtol=1e-5)


def regression():
  """`y = x w`: gradients in closed form."""

  def objective(params, batch, key=None):
    del key
    error = batch['tokens'] @ params['w'] - batch['label']
    weight = batch.get('weight', jnp.ones(len(error)))
    return losses.Loss(jnp.sum(weight * error**2) / 2, weight.sum(), {})

  x, y = normal(8, 3), normal(8)
  return objective, {'tokens': x, 'label': y}


def test_fisher_is_the_mean_of_the_squared_gradients_of_rows():
  objective, batch = regression()
  adapted = adapt.full(KEY, {'w': normal(3)})
  error = np.float64(batch['tokens']) @ np.float64(adapted['w']) - np.float64(batch['label'])
  each = error[:, None] * np.float64(batch['tokens'])
  halves = [{k: v[i : i + 4] for k, v in batch.items()} for i in (0, 4)]
  for rows in (1, 4):
    got = adapt.fisher(objective, adapted, halves, rows=rows)
    np.testing.assert_allclose(got['w'], (each**2).mean(0), rtol=1e-5)
  # Rows that only fill a batch do not count.
  filled = {**batch, 'weight': np.float32(np.arange(8) < 6)}
  got = adapt.fisher(objective, adapted, [filled], rows=2)
  np.testing.assert_allclose(got['w'], (each[:6] ** 2).mean(0), rtol=1e-5)
  # A batch may have parts, as those of preferences do.
  parts = {'part': batch, 'weight': np.ones(8, np.float32)}
  got = adapt.fisher(lambda p, b, key: objective(p, b['part'], key), adapted, [parts], rows=2)
  np.testing.assert_allclose(got['w'], (each**2).mean(0), rtol=1e-5)


def test_ewc_holds_what_mattered():
  objective, batch = regression()
  adapted = adapt.full(KEY, {'w': normal(3)})
  information = adapt.fisher(objective, adapted, [batch])
  held = adapt.with_start(adapted, information)
  now = moved(held)
  want = 0.5 / 2 * np.sum(np.float64(information['w']) * np.float64(now['w'] - held['w']) ** 2)
  np.testing.assert_allclose(jax.jit(adapt.ewc(0.5))(now), want, rtol=1e-6)


def test_parameters_come_back_without_what_was_held():
  adapted = adapt.lora(KEY, params(), 2, select='attn/q')
  held = adapt.with_start(adapted)
  assert list(adapt.trainable(held)[0]['start']) == list(adapted)
  assert not jax.tree.leaves(adapt.trainable(held)[0]['start'])
  back = adapt.without_start(held)
  assert back.rules == adapted.rules and jax.tree.structure(back) == jax.tree.structure(adapted)
  with pytest.raises(InputError, match='without_start first'):
    adapt.merge(held)


def test_the_start_is_sharded_like_what_it_is_a_copy_of():
  model = models.encoder(models.EncoderConfig(vocabulary=16, width=8, hidden=8, heads=1, outputs=2))
  held = jax.eval_shape(
    lambda p: adapt.with_start(adapt.lora(KEY, p, 2, select='attn/q$')), model.shapes()
  )
  grid = shard.mesh({'data': 1, 'fsdp': 8})
  places = shard.param_shardings(grid, held, model.axes(held))
  q, copy = (part['encoder']['0-5']['attn']['q'] for part in (places, places['start']))
  assert copy.leaf.base is None
  assert copy.leaf.a.spec == q.a.spec == jax.P(None, 'fsdp', None)
  assert places['start']['head']['dense'].spec == places['head']['dense'].spec


def test_in_a_step_the_penalty_counts_once_however_the_batch_is_cut():
  objective, batch = regression()

  # A module of one's own would not know what to make of the start: it never sees it.
  def only(params, batch, key=None):
    assert list(params) == ['w']
    return objective(params, batch, key)

  held = adapt.with_start(adapt.full(KEY, {'w': normal(3)}))
  penalty = adapt.l2_sp(0.3)
  trainable, frozen = adapt.trainable(moved(held))
  results = []
  for cut in (1, 4):
    state = train.init_state(trainable, optax.sgd(0.1), KEY)
    step = train.make_step(losses.penalized(only, penalty), optax.sgd(0.1), accumulate=cut)
    state, metrics = jax.jit(step)(state, frozen, batch)
    loss = objective({'w': trainable['w']}, batch)
    np.testing.assert_allclose(metrics['penalty'], penalty(tree.combine(trainable, frozen)), 1e-6)
    np.testing.assert_allclose(metrics['loss'], loss.total / 8 + metrics['penalty'], 1e-5)
    results.append(state.trainable['w'])
  np.testing.assert_allclose(*results, rtol=1e-5)
  error = batch['tokens'] @ trainable['w'] - batch['label']
  gradient = error @ batch['tokens'] / 8 + 0.3 * (trainable['w'] - held['w'])
  np.testing.assert_allclose(results[0], trainable['w'] - 0.1 * gradient, rtol=1e-5)


@pytest.mark.parametrize(
  'bad, message',
  [
    (lambda: adapt.with_start({'w': normal(3)}), 'no method has said'),
    (
      lambda: adapt.with_start(adapt.with_start(adapt.full(KEY, {'w': normal(3)}))),
      "'start' already",
    ),
    (lambda: adapt.l2_sp(-1.0), 'weight is -1.0; it must be a number of at least 0'),
    (lambda: adapt.ewc(float('nan')), 'weight is nan'),
    (lambda: adapt.l2_sp()({'w': normal(3)}), "hold no 'start' .* adapt.with_start"),
    (
      lambda: adapt.ewc()(adapt.with_start(adapt.full(KEY, {'w': normal(3)}))),
      r"hold no 'fisher' .*with_start\(params, fisher\)",
    ),
    (
      lambda: adapt.with_start(adapt.full(KEY, {'w': normal(3)}), {'w': normal(2)}),
      'Fisher information is not that of what trains',
    ),
    (lambda: adapt.fisher(None, adapt.full(KEY, {'w': normal(3)}), []), 'no row of the batches'),
    (
      lambda: adapt.fisher(None, adapt.full(KEY, {'w': normal(3)}), [{'x': normal(4)}], rows=3),
      'rows is 3, which does not divide a batch of 4',
    ),
  ],
)
def test_bad_input_is_one_clear_line(bad, message):
  with pytest.raises(InputError, match=message) as error:
    bad()
  assert '\n' not in str(error.value)


def test_the_reference_is_the_start_and_the_policy_what_became_of_it():
  made = adapt.lora(KEY, params(), 2, dropout=0.5, select='attn')
  held = moved(adapt.with_start(made, adapt.trainable(made)[0]))
  policy, reference = jax.jit(adapt.policy_and_reference)(adapt.with_key(held, KEY))
  assert set(policy) == set(reference) == set(params())
  q = [p['decoder']['0-1']['attn']['q'] for p in (made, policy, reference, held)]
  for field in ('base', 'a', 'b', 'scale', 'dropout'):
    start, now, back, trained = (getattr(leaf, field) for leaf in q)
    np.testing.assert_array_equal(back, start)
    np.testing.assert_array_equal(now, trained)
  assert q[1].key is not None and q[2].key is None
  np.testing.assert_array_equal(reference['head']['dense'], made['head']['dense'])
  assert np.abs(policy['head']['dense'] - made['head']['dense']).max() > 0
  with pytest.raises(InputError, match="hold no 'start' to compare with; make them with adapt"):
    adapt.policy_and_reference(made)


def test_of_full_fine_tuning_the_reference_is_the_base():
  start = adapt.with_start(adapt.full(KEY, params()))
  _, reference = adapt.policy_and_reference(moved(start))
  jax.tree.map(np.testing.assert_array_equal, reference, dict(adapt.without_start(start)))


def test_adapters_on_one_another_go_back_together():
  twice = adapt.lora(KEY, adapt.lora(KEY, params(), 2, select='attn'), 1, select='attn')
  start = adapt.with_start(adapt.train_also(twice, [('attn/q/base/[ab]$', True)]))
  _, reference = adapt.policy_and_reference(moved(start))
  jax.tree.map(np.testing.assert_array_equal, reference, dict(adapt.without_start(start)))
