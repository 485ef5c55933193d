"""The language-model loss beside logits in float64, however rows are cut, packed or padded."""

import functools

import jax
import numpy as np
import pytest

from jaxtune import losses, models

MODEL = models.decoder(
  models.DecoderConfig(
    vocabulary=20, width=8, hidden=12, layers=1, heads=2, kv_heads=1, head_width=4
  )
)
RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(lambda x: RNG.normal(0, 0.5, x.shape).astype(np.float32), MODEL.shapes())
B, T = 4, 8
TOKENS = RNG.integers(0, 20, (B, T)).astype(np.int32)
MASK = np.arange(T)[None] < np.array([[8], [5], [3], [8]])
SUPERVISED = RNG.random((B, T)) < 0.5
BATCH = {
  'tokens': TOKENS,
  'mask': MASK,
  'supervised': SUPERVISED,
  'weight': np.array([1, 1, 1, 0], np.float32),
}


def total(params, batch, chunk=None):
  loss = losses.causal_lm(MODEL, chunk)(params, batch)
  return loss.total, loss


@functools.partial(jax.jit, static_argnames='chunk')
def run(batch, chunk=None):
  """The gradient and the loss."""
  return jax.grad(total, has_aux=True)(PARAMS, batch, chunk)


@jax.jit
def loss(batch):
  return total(PARAMS, batch)[1]


def close(got, want, atol=1e-4):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def oracle(batch):
  """Total, weight and number correct, one token at a time, from the model's own logits."""
  logits = np.float64(jax.jit(MODEL.apply)(PARAMS, batch['tokens'], batch.get('mask')))
  total = weight = correct = 0.0
  for b, t in np.ndindex(B, T):
    if t == 0 or not batch['mask'][b, t] or not batch['supervised'][b, t]:
      continue
    row, target, w = logits[b, t - 1], batch['tokens'][b, t], batch['weight'][b]
    total += w * (np.log(np.exp(row).sum()) - row[target])
    correct += w * (row.argmax() == target)
    weight += w
  return total, weight, correct


def test_the_loss_is_the_sum_over_supervised_tokens():
  got = loss(BATCH)
  total, weight, correct = oracle(BATCH)
  assert weight == SUPERVISED[:3, 1:][MASK[:3, 1:]].sum() > 5
  np.testing.assert_allclose(got.total, total, rtol=1e-5)
  assert (got.weight, got.metrics['accuracy']) == (weight, correct)
  easy = {**BATCH, 'tokens': np.zeros_like(TOKENS)}
  assert loss(easy).metrics['accuracy'] == oracle(easy)[2]


def test_a_batch_without_masks_learns_all_but_the_first_tokens():
  got = loss({'tokens': TOKENS})
  ones = np.ones((B, T), bool)
  close(got, loss({**BATCH, 'mask': ones, 'supervised': ones, 'weight': np.ones(B, np.float32)}))
  assert got.weight == B * (T - 1)


def test_chunks_change_neither_loss_nor_gradient():
  close(run(BATCH, chunk=5), run(BATCH))


def test_half_batches_add_up():
  halves = [{name: x[part] for name, x in BATCH.items()} for part in (slice(0, 2), slice(2, 4))]
  close(jax.tree.map(lambda a, b: a + b, *map(run, halves)), run(BATCH))


def test_rows_without_weight_and_tokens_in_padding_contribute_nothing():
  other = TOKENS.copy()
  other[3] = (other[3] + 1) % 20
  other = np.where(MASK, other, (other + 3) % 20)
  changed = {**BATCH, 'tokens': other}
  close(run(changed), run(BATCH), atol=1e-5)


def test_nothing_supervised_weighs_nothing():
  got = loss({**BATCH, 'supervised': np.zeros((B, T), bool)})
  assert (got.total, got.weight, got.metrics['accuracy']) == (0, 0, 0)


@pytest.mark.parametrize('masked', [True, False])
def test_packed_documents_are_the_separate_ones(masked):
  row = np.concatenate([TOKENS[0, :3], TOKENS[1, :3], [11, 12]])[None]
  packed = {
    'tokens': np.repeat(row, B, axis=0),
    'segments': np.repeat(np.repeat([1, 2, 0], [3, 3, 2])[None], B, axis=0),
    'positions': np.repeat(np.array([[0, 1, 2, 0, 1, 2, 0, 0]]), B, axis=0),
    'weight': np.array([1, 0, 0, 0], np.float32),
  }
  if masked:
    packed['mask'] = packed['segments'] > 0
  separate = {
    'tokens': TOKENS,
    'mask': np.arange(T)[None] < np.array([[3], [3], [0], [0]]),
    'supervised': np.ones((B, T), bool),
    'weight': np.array([1, 1, 0, 0], np.float32),
  }
  got = loss(packed)
  assert got.weight == 2 + 2
  close(got, loss(separate), atol=1e-5)
  if masked:
    close(run(packed), run(separate))


def test_padding_on_the_left_changes_nothing():
  right = np.repeat(np.arange(T)[None] < 4, B, axis=0)
  plain = {**BATCH, 'mask': right, 'supervised': np.ones((B, T), bool)}
  rolled = {**plain, **{k: np.roll(plain[k], 4, axis=1) for k in ('tokens', 'mask', 'supervised')}}
  assert loss(rolled).weight == 3 * 3  # in each row of weight, all but its first token
  close(loss(rolled), loss(plain))
