"""Losses on preferences: TRL's values and gradients, rows that count for nothing, bad options."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import losses
from jaxtune.losses.dpo import KINDS
from jaxtune.losses.orpo import log_odds
from jaxtune.typing import InputError
from scripts.golden_preference import CASES, part
from tests.losses.bigram import bigram

GOLDEN = dict(np.load(pathlib.Path(__file__).parent / 'golden' / 'preference.npz'))
MODEL = bigram()
PARAMS = {'table': GOLDEN['policy'], 'start': GOLDEN['reference']}


log_p = jax.jit(lambda table, part: losses.log_probs(MODEL, {'table': table}, part)[0])


def reference(params):
  return {'table': params['table']}, {'table': params['start']}


def objective_of(name, **more):
  _, objective, options, _ = CASES[name]
  if objective in ('dpo', 'kto'):
    options = {'reference': reference, **options}
  model = bigram(reward=True) if objective == 'reward' else MODEL
  return losses.create(objective, model, **options, **more)


def batch_of(name):
  kind, objective, _, _ = CASES[name]
  parts = {k: part(GOLDEN, kind, k) for k in ('chosen', 'rejected', 'mismatched')}
  if objective == 'kto':
    return {**parts['chosen'], 'label': GOLDEN['label'], 'mismatched': parts['mismatched']}
  own = {'margin': GOLDEN['margin']} if objective == 'reward' else {}
  return {'chosen': parts['chosen'], 'rejected': parts['rejected'], **own}


@functools.cache
def means(names, fill=False, chunk=None):
  """`{name: ((mean loss, sums), gradient)}` of cases, compiled together."""
  batches = {name: filled(batch_of(name)) if fill else batch_of(name) for name in names}

  @jax.jit
  def compute(params, batches):
    def of(name):
      def loss(params):
        more = {'chunk': chunk} if chunk else {}
        found = objective_of(name, **more)(params, batches[name], None)
        return found.total / found.weight, found

      return jax.value_and_grad(loss, has_aux=True)(params)

    return {name: of(name) for name in names}

  return compute(PARAMS, batches)


def filled(value, key=''):
  """A batch with padding, and a row without weight, a copy of the last with nothing supervised."""
  if isinstance(value, dict):
    more = {k: filled(v, k) for k, v in value.items()}
    return more if key else {**more, 'weight': np.array([1, 1, 1, 1, 0], np.float32)}
  more = np.concatenate([value, value[-1:]])
  if key in ('tokens', 'mask', 'supervised'):
    more = np.pad(more, ((0, 0), (0, 3)))
  if key == 'supervised':
    more[-1] = False
  return more


def same(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)


def test_values_and_gradients_are_those_of_trl():
  for name, ((loss, _), gradient) in means(tuple(CASES)).items():
    np.testing.assert_allclose(loss, GOLDEN[f'{name}_loss'], rtol=1e-5, err_msg=name)
    want = GOLDEN[f'{name}_gradient']
    atol = 1e-5 * np.abs(want).max()
    np.testing.assert_allclose(gradient['table'], want, rtol=1e-5, atol=atol, err_msg=name)
    assert not gradient['start'].any()


def test_neither_chunks_nor_padding_nor_rows_without_weight_change_anything():
  names = ('dpo_ipo', 'dpo_sft', 'orpo', 'kto')
  same(means(names, fill=True, chunk=7), {name: means(tuple(CASES))[name] for name in names})


def test_a_precomputed_reference_is_the_reference():
  batch = batch_of('dpo_ipo')
  ((_, want), _) = means(tuple(CASES))['dpo_ipo']
  own = {k: {**batch[k], 'reference': log_p(PARAMS['start'], batch[k])} for k in batch}
  got = jax.jit(losses.dpo(MODEL, kind='ipo'))({'table': PARAMS['table']}, own)
  assert set(want.metrics) - set(got.metrics) == {'kl'}
  np.testing.assert_allclose(got.total, want.total, rtol=1e-6)
  with pytest.raises(InputError, match='no reference to compare the policy with'):
    losses.dpo(MODEL)({'table': PARAMS['table']}, batch, None)


def test_the_divergence_of_dpo_is_the_mean_over_the_tokens_of_a_pair():
  batch = batch_of('dpo_sigmoid')
  got = means(tuple(CASES))['dpo_sigmoid'][0][1].metrics['kl']
  p, q = (np.float64(GOLDEN[name]) for name in ('policy', 'reference'))
  p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
  by_token = (np.exp(p) * (p - q)).sum(-1)
  want = 0
  for row in range(4):
    found = np.concatenate([
      by_token[batch[k]['tokens'][row, :-1]][batch[k]['supervised'][row, 1:]] for k in batch
    ])  # fmt: skip
    want += found.mean()
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_policy_that_is_its_reference_wins_half():
  params = {'table': PARAMS['start'], 'start': PARAMS['start']}
  metrics = jax.jit(objective_of('dpo_sigmoid'))(params, batch_of('dpo_sigmoid')).metrics
  assert metrics['accuracy'] == 2 and metrics['margin'] == metrics['kl'] == 0


def test_smoothed_labels_of_dpo_are_two_losses():
  r = np.float32(np.random.default_rng(1).normal(0, 9, (2, 5)))
  got = losses.dpo_loss(*r, beta=0.3, label_smoothing=0.1)
  want = 0.9 * losses.dpo_loss(*r, beta=0.3) + 0.1 * losses.dpo_loss(*r[::-1], beta=0.3)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_far_from_the_reference_losses_and_gradients_are_finite():
  r = jnp.array([[-3e4, 3e4, 0.0], [3e4, -3e4, 0.0]], jnp.float32)

  @jax.jit
  def all_kinds(r):
    return [
      losses.dpo_loss(r[0], r[1], 1.0, kind, 0.1 if kind in ('robust', 'exo') else 0.0)
      for kind in KINDS
    ]

  assert np.isfinite(all_kinds(r)).all()
  assert np.isfinite(jax.jit(jax.grad(lambda r: jnp.sum(jnp.stack(all_kinds(r)))))(r)).all()


def test_odds_are_exact_and_finite():
  log_p = np.float32([-60, -9, -1.2, -np.log(2), -0.3, -1e-4, -1e-6])
  want = np.float64(log_p) - np.log(-np.expm1(np.float64(log_p)))
  np.testing.assert_allclose(log_odds(log_p), want, rtol=1e-5, atol=1e-6)
  at = jnp.array([0.0, -1e-9, -np.log(2), -1e4], jnp.float32)
  loss = jax.jit(jax.value_and_grad(lambda x: losses.orpo_loss(x, -jnp.ones(4)).sum()))
  assert all(np.isfinite(x).all() for x in loss(at))


def unpaired(labels):
  batch = batch_of('kto')
  return {**batch, 'label': np.array(labels), 'weight': np.array([1, 0.5, 0, 2], np.float32)}


def test_the_divergence_of_kto_is_of_rows_with_weight_and_never_below_zero():
  batch = unpaired([True, False, True, False])
  objective = jax.jit(objective_of('kto'))
  loss = objective(PARAMS, batch)
  other = batch['mismatched']
  ratio = np.subtract(*(
    log_p(PARAMS[k], other) for k in ('table', 'start')
  ))  # fmt: skip
  want = 0.1 * max(0, (batch['weight'] * ratio).sum() / 3.5)
  np.testing.assert_allclose(loss.metrics['baseline'] / loss.weight, want, rtol=1e-5, atol=1e-7)
  swapped = {'table': PARAMS['start'], 'start': PARAMS['table']}
  found = [objective(p, batch).metrics['baseline'] for p in (PARAMS, swapped)]
  assert min(found) == 0 < max(found)


@pytest.mark.parametrize('labels', [[True, False, True, False], [True] * 4, [False] * 4])
def test_bco_is_its_equation(labels):
  batch = unpaired(labels)
  loss = jax.jit(losses.bco(MODEL, 0.4, reference=reference))(PARAMS, batch)
  own = {k: batch[k] for k in ('tokens', 'mask', 'supervised')}
  r = 0.4 * np.float64(np.subtract(*(
    log_p(PARAMS[k], own) for k in ('table', 'start')
  )))  # fmt: skip
  weight, good = np.float64(batch['weight']), batch['label']
  means = [np.average(r[k], weights=weight[k]) for k in (good, ~good) if weight[k].sum()]
  shift = np.mean(means)
  want = np.log1p(np.exp(-np.where(good, 1, -1) * (r - shift)))
  np.testing.assert_allclose(loss.total, (weight * want).sum(), rtol=1e-5)
  np.testing.assert_allclose(loss.metrics['baseline'] / loss.weight, shift, rtol=1e-4)
  fixed = jax.jit(losses.bco(MODEL, 0.4, shift=shift, reference=reference))(PARAMS, batch)
  np.testing.assert_allclose(fixed.total, loss.total, rtol=1e-6)


def test_the_loss_on_pairs_without_a_shift_is_that_on_both_halves():
  batch = batch_of('dpo_bco')
  ((_, pairs), _) = means(tuple(CASES))['dpo_bco']
  objective = jax.jit(losses.bco(MODEL, shift=0.0, reference=reference))
  halves = [
    objective(PARAMS, {**batch[k], 'label': np.full(4, k == 'chosen')}).total for k in batch
  ]
  np.testing.assert_allclose(pairs.total, sum(halves), rtol=1e-6)


@pytest.mark.parametrize(
  'objective, options, message',
  [
    ('dpo', {'kind': 'dpo'}, "unknown kind 'dpo'; known: sigmoid, hinge, ipo"),
    ('dpo', {'beta': 0.0}, 'beta is 0.0; it must be a positive number'),
    ('dpo', {'label_smoothing': 0.5}, 'label_smoothing is 0.5; it is the probability'),
    ('dpo', {'kind': 'hinge', 'label_smoothing': 0.1}, "kind 'hinge' has no label_smoothing"),
    ('dpo', {'kind': 'exo'}, 'needs a label_smoothing above 0'),
    ('dpo', {'sft_weight': -1.0}, 'sft_weight is -1.0; it must be a number of at least 0'),
    ('cpo', {'sft_weight': float('nan')}, 'sft_weight is nan'),
    ('simpo', {'beta': -1}, 'beta is -1'),
    ('simpo', {'beta': 'two'}, "beta is 'two'; it must be a positive number"),
    ('orpo', {'beta': -1}, 'beta is -1'),
    ('kto', {'undesirable_weight': -1}, 'undesirable_weight is -1'),
    ('bco', {'beta': 0}, 'beta is 0'),
    ('reward', {'center_rewards_coefficient': -1}, 'center_rewards_coefficient is -1'),
  ],
)
def test_numbers_that_a_loss_cannot_have(objective, options, message):
  with pytest.raises(InputError, match=message) as error:
    losses.create(objective, MODEL, **options)
  assert '\n' not in str(error.value)


def test_what_a_batch_or_a_model_lacks():
  with pytest.raises(InputError, match='no mismatched completions'):
    losses.kto(MODEL, reference=reference)(PARAMS, batch_of('kto')['mismatched'], None)
  with pytest.raises(InputError, match='take one with one output a text'):
    losses.reward(MODEL)(PARAMS, batch_of('reward'), None)
