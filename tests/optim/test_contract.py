"""What every update rule keeps: jaxtune's own and every one of Optax.

Half a dozen rules run always, the others are marked `slow`.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxtune import optim
from jaxtune.optim import by_name

# The default suite's; the slow suite has all others.
CORE = ('adaptive_rate', 'adamw', 'adafactor', 'muon', 'in_subspace', 'quantize_state')
# dpsgd wants a gradient for each example; optimistic_adam gave way to its second version.
LEFT_OUT = ('dpsgd', 'optimistic_adam')


def then(core):
  """A direction as a rule, with the learning rate last."""
  return lambda rate: optax.chain(core, optax.scale_by_learning_rate(rate))


def matrices(core):
  return then(optim.for_matrices(core, optim.in_precision(optax.identity())))


ADAM = optim.in_precision(optax.scale_by_adam())
# The pieces that ready chains are made of, and the wrappers, each by itself.
PRIMITIVES = {
  'accumulate_by_weight': lambda r: optim.accumulate_by_weight(optim.momentum(r), every=2),
  'add_cautious_decay': then(optax.chain(ADAM, optim.add_cautious_decay(0.1))),
  'amplify_slow_gradients': then(optim.amplify_slow_gradients()),
  'average_weights': lambda r: optim.average_weights(optim.momentum(r), 0.9),
  'bucket_by_shape': matrices(optim.bucket_by_shape(optax.trace(0.9))),
  'by_rules': lambda r: optim.by_rules([('bias', optim.momentum(r)), ('', optim.muon(r))]),
  'cautious': then(optim.cautious(ADAM)),
  'hold_norms': lambda r: optim.hold_norms(ADAM, r),
  'in_eigenbasis': matrices(optim.in_eigenbasis(ADAM, every=2)),
  'in_subspace': matrices(optim.in_subspace(ADAM, optim.svd_projector(2, every=2))),
  'limit_growth': matrices(optim.limit_growth()),
  'multiply_by_rules': then(optax.chain(ADAM, optim.multiply_by_rules([('', 0.5)]))),
  'observe': lambda r: optim.observe(optim.momentum(r), [('bias', 'biases'), ('', 'others')]),
  'orthogonalize': matrices(optim.orthogonalize()),
  'quantize_state': then(optim.quantize_state(ADAM, optim.BFLOAT16)),
  'scale_by_accumulated_norm': then(optim.scale_by_accumulated_norm()),
  'scale_by_blockwise_moments': then(optim.scale_by_blockwise_moments()),
  'scale_by_gradient_difference': then(optim.scale_by_gradient_difference()),
  'scale_by_kron': matrices(optim.scale_by_kron(every=2)),
  'scale_by_lmo': then(optim.scale_by_lmo()),
  'scale_by_matrix_shape': matrices(optim.scale_by_matrix_shape()),
  'scale_by_riemannian_lora': then(optim.for_pairs(optim.scale_by_riemannian_lora(), ADAM)),
  'scale_by_shampoo': matrices(optim.scale_by_shampoo()),
  'skip_spikes': lambda r: optim.skip_spikes(optim.momentum(r)),
  'stochastic_round_params': lambda r: optim.stochastic_round_params(optim.momentum(r)),
}


# What Optax alone answers for is asked of some of its own rules only.
OURS = tuple(dict.fromkeys((*by_name.OWN, *PRIMITIVES, *CORE)))


def each(*without, among=None):
  rules = (*optim.names(), *PRIMITIVES)
  names = [n for n in among or rules if n not in (*LEFT_OUT, *without)]
  marked = [n if n in CORE else pytest.param(n, marks=pytest.mark.slow) for n in names]
  return pytest.mark.parametrize('name', marked)


STATIC = {
  'adafactor': {'min_dim_size_to_factor': 2},
  'apollo': {'rank': 2, 'every': 2},
  'galore': {'rank': 2, 'every': 2},
  'lars': {'trust_coefficient': 1.0},
  'lbfgs': {'linesearch': None},
  'noisy_sgd': {'key': jax.random.key(0)},
}
# Eigenvectors and inverse roots amplify rounding.
LOOSE = dict.fromkeys(
  ('in_eigenbasis', 'scale_by_shampoo', 'shampoo', 'soap', 'soap_h'), {'rtol': 1e-3, 'atol': 1e-4}
)
EXTRA = {
  'accumulate_by_weight': {'weight': 2.0},
  'momo': {'value': 1.0},
  'momo_adam': {'value': 1.0},
  'sophia': {'obj_fn': lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))},
}
ALL = [('', True)]  # decay rules: every parameter decays


def floats(name):
  """Every real-valued hyperparameter of a rule at its default."""
  if name in PRIMITIVES:
    return {'learning_rate': 1e-2}
  parameters = inspect.signature(by_name.factory(name)).parameters.values()
  return {p.name: p.default for p in parameters if isinstance(p.default, float)} | {
    'learning_rate': 1e-2
  }


def make(name, learning_rate=1e-2, **kwargs):
  if name in PRIMITIVES:
    rates = {'learning_rate': learning_rate}
    return optim.with_hyperparameters(
      lambda learning_rate: PRIMITIVES[name](learning_rate),
      rates,
      schedule=kwargs.get('schedule'),
    )
  masks = set(by_name.DECAY_MASKS) & set(inspect.signature(by_name.factory(name)).parameters)
  decay = {'decay_rules': ALL} if masks else {}
  return optim.create(name, learning_rate, **{**STATIC.get(name, {}), **decay, **kwargs})


def numbers(seed, dtype=jnp.float32):
  """Stacks of matrices, of norms and of LoRA's factors, a matrix, a vector and a hole."""
  rng = np.random.default_rng(seed)
  shapes = {'w': (3, 4, 5), 'scale': (3, 5), 'embed': (6, 4), 'bias': (4,)}
  shapes |= {'a': (3, 4, 2), 'b': (3, 2, 5)}
  x = {k: jnp.asarray(rng.standard_normal(s), dtype) for k, s in shapes.items()}
  return {
    'decoder': {
      '0-2': {
        'w': x['w'],
        'norm': {'scale': x['scale'], 'frozen': None},
        'up': {'a': x['a'], 'b': x['b']},
      }
    },
    'embed': x['embed'],
    'bias': x['bias'],
  }


def stepper(name, tx):
  def step(params, state, gradient):
    updates, state = tx.update(gradient, state, params, **EXTRA.get(name, {}))
    return optax.apply_updates(params, updates), state

  return step


def assert_close(a, b, rtol=2e-5, atol=1e-6):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol, atol)


def types(t):
  return [(x.shape, x.dtype) for x in jax.tree.leaves(t)]


@each()
def test_jit_is_eager_and_bfloat16_parameters_keep_float32_state(name):
  tx = make(name, clip_norm=1.0)
  params, gradient = numbers(0, jnp.bfloat16), numbers(1, jnp.bfloat16)
  state = tx.init(params)
  update = functools.partial(tx.update, **EXTRA.get(name, {}))
  jitted = jax.jit(update)(gradient, state, params)
  if name in OURS:
    assert_close(update(gradient, state, params), jitted, **LOOSE.get(name, {}))
  updates, new = jitted
  assert jax.tree.structure(updates) == jax.tree.structure(params)  # the hole is still a hole
  assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
  assert types(state) == types(new)
  inexact = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)}
  assert inexact == {jnp.dtype(jnp.float32)}


@each()
def test_lanes_scanned_are_separate_runs_looped(name):
  """Every real hyperparameter lives in the state, so a factory that branched on one would fail."""
  tx = make(name, **floats(name), schedule=optim.schedule('linear', steps=4, warmup=2))
  step = stepper(name, tx)
  params, rates = numbers(0), jnp.asarray([1e-3, 1e-2, 1e-1])
  gradients = [numbers(i) for i in (1, 2, 3)]
  state = tx.init(params)

  def lane(rate):
    start = optim.set_hyperparameters(state, learning_rate=rate)
    xs = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
    return jax.lax.scan(lambda c, g: (step(*c, g), None), (params, start), xs)[0]

  lanes = jax.jit(jax.vmap(lane))(rates)
  one = jax.jit(step)
  for i, rate in enumerate(rates):
    run = params, optim.set_hyperparameters(state, learning_rate=rate)
    for g in gradients:
      run = one(*run, g)
    assert_close(jax.tree.map(lambda x, i=i: x[i], lanes), run, rtol=1e-3, atol=1e-5)


@each(among=OURS)
def test_a_rate_of_zero_changes_nothing(name):
  tx = make(name, learning_rate=0)
  params = numbers(0)
  new, _ = jax.jit(stepper(name, tx))(params, tx.init(params), numbers(1))
  # Schedule-free rules subtract two sums that are equal but for their rounding.
  assert_close(new, params, rtol=0, atol=5e-7 if name.startswith('schedule_free') else 0)


@each(among=OURS)
def test_zero_gradients_do_no_harm(name):
  """From the first step on: no division of nothing by nothing."""
  tx, params = make(name, clip_norm=1.0), numbers(0)
  zeros, step = jax.tree.map(jnp.zeros_like, params), jax.jit(stepper(name, tx))
  state = tx.init(params)
  for _ in range(2):
    params, state = step(params, state, zeros)
  for x in jax.tree.leaves((params, state)):
    assert x.dtype == jax.random.key(0).dtype or np.all(np.isfinite(x))


@each(among=OURS)
def test_masked_leaves_are_left_alone(name):
  tx, params, gradient = make(name), numbers(0), numbers(1)
  masked = optax.masked(tx, {'decoder': True, 'embed': False, 'bias': False})
  extra = EXTRA.get(name, {})

  def update(rule, g, p):
    return jax.jit(functools.partial(rule.update, **extra))(g, rule.init(p), p)[0]

  only = {'decoder': params['decoder'], 'embed': None, 'bias': None}
  g = {'decoder': gradient['decoder'], 'embed': None, 'bias': None}
  expected = {**gradient, 'decoder': update(tx, g, only)['decoder']}
  assert_close(update(masked, gradient, params), expected)


@each(among=OURS)
def test_sharded_is_unsharded(name):
  tx, params = make(name, clip_norm=1.0), numbers(0)
  mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  specs = {
    'decoder': {
      '0-2': {
        'w': (None, 'fsdp'),
        'norm': {'scale': (), 'frozen': None},
        'up': {'a': (None, 'fsdp'), 'b': ()},
      }
    },
    'embed': (None, 'fsdp'),
    'bias': ('fsdp',),
  }
  place = jax.tree.map(lambda _, s: jax.NamedSharding(mesh, jax.P(*s)), params, specs)
  step, state = stepper(name, tx), tx.init(params)
  places = optim.state_sharding(tx, params, place)
  spread = jax.jit(step, in_shardings=(place, places, place), out_shardings=(place, places))
  a, b = (params, state), jax.device_put((params, state), (place, places))
  for i in (1, 2):
    a = jax.jit(step)(*a, numbers(i))
    b = spread(*b, jax.device_put(numbers(i), place))
  assert_close(a, b, **LOOSE.get(name, {'rtol': 1e-4, 'atol': 1e-5}))


@each(among=OURS)
def test_states_come_back_from_orbax_bit_for_bit(name, tmp_path):
  tx, params = make(name, **floats(name)), numbers(0, jnp.bfloat16)
  _, state = jax.jit(stepper(name, tx))(params, tx.init(params), numbers(1, jnp.bfloat16))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', {'opt': state})
    checkpointer.wait_until_finished()
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, {'opt': tx.init(params)})
    back = checkpointer.restore(tmp_path / 'state', target)['opt']
  assert jax.tree.structure(back) == jax.tree.structure(state)
  for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
    x, y = (jax.random.key_data(z) if z.dtype == jax.random.key(0).dtype else z for z in (x, y))
    assert x.dtype == y.dtype and np.array_equal(x, y)


@each(among=by_name.OWN)
def test_a_constant_schedule_is_a_number(name):
  rules = [by_name.factory(name)(rate, **STATIC.get(name, {})) for rate in (1e-2, lambda _: 1e-2)]
  params, gradient = numbers(0), numbers(1)
  a, b = (jax.jit(tx.update)(gradient, tx.init(params), params)[0] for tx in rules)
  # An update that is a difference of parameters (adam_h) has their rounding.
  assert_close(a, b, rtol=1e-6, atol=2e-7)


@each(among=OURS)
def test_no_buffer_twice_so_that_a_step_may_donate(name):
  params = numbers(0)
  state = make(name, clip_norm=1.0, **floats(name)).init(params)
  arrays = [x for x in jax.tree.leaves((params, state)) if x.dtype != jax.random.key(0).dtype]
  pointers = [x.unsafe_buffer_pointer() for x in arrays]
  assert len(set(pointers)) == len(pointers)


@each(among=OURS)
def test_empty_trees(name):
  tx = make(name, clip_norm=1.0)
  for empty in ({}, {'a': None}):
    state = tx.init(empty)
    updates, new = tx.update(empty, state, empty, **EXTRA.get(name, {}))
    assert updates == empty
    assert types(state) == types(new)


def unstacked(t):
  stack = t['decoder'].pop('0-2')
  layers = {str(i): jax.tree.map(lambda x, i=i: x[i], stack) for i in range(3)}
  return {**t, 'decoder': layers}


@each('noisy_sgd', 'sophia', 'stochastic_round_params', 'quantize_state')  # other draws of noise
def test_the_update_of_a_stack_is_the_updates_of_its_layers(name):
  """And rules outside WHOLE_LEAF need no mapping for it, those inside do."""

  def run(tx, take):
    params, gradients = take(numbers(0)), [take(numbers(i)) for i in (1, 2)]
    state, step = tx.init(params), jax.jit(stepper(name, tx))
    for g in gradients:
      params, state = step(params, state, g)
    return params

  flat = run(make(name), unstacked)
  assert_close(unstacked(run(make(name), lambda t: t)), flat, rtol=1e-4, atol=1e-5)
  if name in by_name.WHOLE_LEAF:
    wrong = unstacked(run(make(name, axes=[('', 0)]), lambda t: t))
    with pytest.raises(AssertionError):
      assert_close(wrong, flat, rtol=1e-4, atol=1e-5)


def optax_run(tx, name, steps=5):
  params = numbers(0)
  state, step = tx.init(params), jax.jit(stepper(name, tx))
  for i in range(steps):
    params, state = step(params, state, numbers(i + 1))
  return params


@pytest.mark.parametrize('name', ['adam', 'adamw', 'lion', 'sgd'])
def test_with_the_rate_alone_in_the_state_the_rule_is_bit_for_bit_that_of_optax(name):
  theirs = optax_run(getattr(optax, name)(1e-2), name)
  assert_close(optax_run(make(name), name), theirs, rtol=0, atol=0)


@each(*by_name.OWN, *by_name.WHOLE_LEAF, *PRIMITIVES)
def test_with_every_hyperparameter_in_the_state_the_rule_is_that_of_optax(name):
  """What differs is `1 - b`: in float32 1 - 0.999 is off by 1.3e-5 of itself, in Python not.

  Adam's bias correction takes most of that back; acprop moves far (by 1.7 here) and keeps 1e-5.
  """
  theirs = optax_run(by_name.factory(name)(1e-2, **STATIC.get(name, {})), name)
  assert_close(optax_run(make(name), name), theirs, rtol=1e-6, atol=1e-6)
  atol = 3e-5 if name == 'acprop' else 1e-6
  assert_close(optax_run(make(name, **floats(name)), name), theirs, rtol=1e-6, atol=atol)
