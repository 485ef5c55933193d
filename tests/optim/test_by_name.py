"""Rules by name: what they accept, what they refuse, and the hyperparameters in their state."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import optim
from jaxtune.typing import InputError

PARAMS = {'w': jnp.ones((3, 2)), 'bias': jnp.ones((2,))}


@pytest.mark.parametrize(
  ('name', 'kwargs', 'says'),
  [
    ('AdamWW', {}, 'nearest are adamw'),
    ('zzz', {}, 'choose one of adagrad_norm'),
    ('scale_by_rprop', {}, 'is unknown'),
    ('adamw', {'learning_rate': -1e-3}, 'learning_rate is -0.001'),
    ('adamw', {'learning_rate': float('nan')}, 'learning_rate is nan'),
    ('adamw', {'learning_rate': 1e39}, 'learning_rate is 1e'),
    ('adamw', {'learning_rate': '1e-3'}, "learning_rate is '1e-3'; give a number"),
    ('adamw', {'learning_rate': optax.constant_schedule(1.0)}, r'goes in schedule='),
    ('adamw', {'weight_decai': 0.1}, "did you mean 'weight_decay'.*it takes b1"),
    ('gradient_descent', {'beta': 0.9}, 'takes the learning rate alone'),
    ('adamw', {'weight_decay': -0.1}, 'weight_decay is -0.1'),
    ('adamw', {'weight_decay': None}, 'weight_decay is None; give a number'),
    ('adamw', {'weight_decay': True}, 'weight_decay is True; give a number'),
    ('adamw', {'b1': 1.0}, 'b1 is 1.0.*0 <= b1 < 1'),
    ('adamw', {'b2': 0.99999999}, 'b2 is 0.99999999'),  # exactly 1 in float32
    ('adamw', {'b1': jnp.ones(3)}, 'give one number'),
    ('adamw', {'nesterov': 1}, 'nesterov is 1; give true or false'),
    ('adamw', {'mask': None}, 'give decay_rules'),
    ('adamw', {'clip_norm': 0}, 'clip_norm is 0'),
    ('adamw', {'clip_norm': float('inf')}, 'clip_norm is inf'),
    ('adamw', {'schedule': 'cosine'}, "schedule is 'cosine'"),
    ('adamw', {'state_dtype': 'int8'}, 'give a float dtype'),
    ('momentum', {'beta': 1.0}, 'beta is 1.0'),
    ('adaptive_rate', {'beta': -1.0}, 'beta is -1.0'),
    ('sgd', {'momentum': 2}, 'momentum is 2'),
    ('sgd', {'decay_rules': [('', True)]}, 'takes no decay_rules'),
    ('adafactor', {'min_dim_size_to_factor': 2.5}, 'give a whole number'),
    ('prodigy', {'betas': 0.9}, 'betas is 0.9; give a list of numbers'),
    ('muon', {'coefficients': 'muon'}, "coefficients is 'muon'; choose one of standard"),
    ('muonclip', {'threshold': 0}, 'threshold is 0; give a finite number above 0'),
    ('apollo', {'gamma': 0.5}, 'gamma is 0.5; give a finite number of at least 1'),
    ('grokfast_adamw', {'alpha': 1.0}, 'alpha is 1.0.*0 <= alpha < 1'),
    ('soap', {'every': 0}, 'every is 0; give the steps'),
    ('dpsgd', {}, 'needs l2_norm_clip'),
  ],
)
def test_bad_input(name, kwargs, says):
  with pytest.raises(InputError, match=says) as e:
    optim.create(name, **{'learning_rate': 1e-3, **kwargs})
  assert '\n' not in str(e.value)


def test_integers_for_real_hyperparameters_are_real():
  state = optim.create('adamw', 1, weight_decay=0, eps=1).init(PARAMS)
  values = optim.hyperparameters(state)
  assert sorted(values) == ['eps', 'learning_rate', 'weight_decay']
  assert {v.dtype for v in values.values()} == {jnp.dtype(jnp.float32)}


def test_where_the_rule_has_no_default_a_number_is_real_by_how_it_is_written_or_named():
  named = optim.create('sgd', 1e-3, momentum=0)
  assert 'momentum' in optim.hyperparameters(named.init(PARAMS))
  written = optim.create('adafactor', 1e-3, weight_decay_rate=0.2)
  assert 'weight_decay_rate' in optim.hyperparameters(written.init(PARAMS))
  whole = optim.create('schedule_free_adamw', 1e-3, warmup_steps=10)
  assert 'warmup_steps' not in optim.hyperparameters(whole.init(PARAMS))


def test_none_where_the_rule_allows_it():
  optim.create('adafactor', 1e-3, clipping_threshold=None).init(PARAMS)


def test_the_schedule_multiplies_every_rate():
  tx = optim.create(
    'muon_h', 1e-2, rest_learning_rate=1e-3, schedule=optim.schedule('linear', steps=4)
  )
  state = tx.init(PARAMS)
  for _ in range(3):
    _, state = tx.update(PARAMS, state, PARAMS)
  values = optim.hyperparameters(state)
  np.testing.assert_allclose(values['learning_rate'], 0.5e-2, rtol=1e-6)
  np.testing.assert_allclose(values['rest_learning_rate'], 0.5e-3, rtol=1e-6)


def test_clipping_is_over_all_leaves_before_the_rule():
  tx = optim.create('sgd', 1.0, clip_norm=1.0)
  g = {'w': jnp.full((3, 2), 3.0), 'bias': jnp.full((2,), 4.0)}
  updates, _ = tx.update(g, tx.init(PARAMS), PARAMS)
  norm = np.sqrt(6 * 9 + 2 * 16)
  np.testing.assert_allclose(updates['w'], -3.0 / norm, rtol=1e-6)
  np.testing.assert_allclose(updates['bias'], -4.0 / norm, rtol=1e-6)


def test_setting_hyperparameters_inside_a_larger_state_compiles_once():
  tx = optax.MultiSteps(
    optax.chain(optim.create('adamw', 1.0, weight_decay=0.5), optax.scale(1.0)), 1
  )
  step = jax.jit(tx.update)
  state = tx.init(PARAMS)
  new = optim.set_hyperparameters(state, learning_rate=0.25, weight_decay=0.0)
  assert optim.hyperparameters(new)['learning_rate'] == 0.25
  assert optim.hyperparameters(state)['learning_rate'] == 1.0
  a, _ = step(PARAMS, state, PARAMS)
  b, _ = step(PARAMS, new, PARAMS)
  np.testing.assert_allclose(a['w'], -1.5, rtol=1e-5)
  np.testing.assert_allclose(b['w'], -0.25, rtol=1e-5)
  assert step._cache_size() == 1


def test_a_scalar_sets_all_lanes():
  state = optim.create('adam', 1.0).init(PARAMS)
  lanes = jax.vmap(lambda r: optim.set_hyperparameters(state, learning_rate=r))(jnp.arange(3.0))
  np.testing.assert_array_equal(optim.hyperparameters(lanes)['learning_rate'], [0, 1, 2])
  same = optim.set_hyperparameters(lanes, learning_rate=5.0)
  np.testing.assert_array_equal(optim.hyperparameters(same)['learning_rate'], [5, 5, 5])


def test_rules_are_made_under_vmap():
  init = jax.vmap(lambda b1: optim.create('adam', 1e-3, b1=b1).init(PARAMS))
  np.testing.assert_allclose(optim.hyperparameters(init(jnp.asarray([0.5, 0.9])))['b1'], [0.5, 0.9])


def test_bad_states():
  state = optim.create('adam', 1e-3).init(PARAMS)
  assert optim.hyperparameters(optax.adam(1e-3).init(PARAMS)) == {}
  with pytest.raises(InputError, match='holds 0 sets'):
    optim.set_hyperparameters(optax.adam(1e-3).init(PARAMS), learning_rate=1.0)
  with pytest.raises(InputError, match='holds 2 sets'):
    optim.hyperparameters((state, state))
  with pytest.raises(InputError, match="no hyperparameter 'b2', only learning_rate"):
    optim.set_hyperparameters(state, b2=0.9)
  with pytest.raises(InputError, match=r'has shape \(3,\)'):
    optim.set_hyperparameters(state, learning_rate=jnp.ones(3))


def test_float64_state_on_request_and_for_float64_parameters():
  with jax.enable_x64(True):
    asked = optim.create('adam', 1e-3, state_dtype=jnp.float64).init({'w': jnp.ones(2, 'float32')})
    assert asked.hyperparameters['learning_rate'].dtype == jnp.float64
    given = optim.create('adam', 1e-3).init({'w': jnp.ones(2, 'float64')})
    for state in (asked, given):
      moments = jax.tree.leaves(optax.tree.get(state, 'mu'))
      assert [x.dtype for x in moments] == [jnp.dtype('float64')]


def test_the_import_is_light():
  code = """if True:
    import sys, optax
    before = set(sys.modules)
    from jaxtune import optim
    heavy = {'flax', 'orbax', 'grain', 'tokenizers', 'transformers', 'torch', 'chex'}
    print(sorted({m.split('.')[0] for m in set(sys.modules) - before} & heavy))
    print(sorted(m for m in sys.modules if m.startswith('jaxtune.') and '.optim' not in m))
  """
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout.splitlines() == ['[]', "['jaxtune.tree', 'jaxtune.typing']"]
