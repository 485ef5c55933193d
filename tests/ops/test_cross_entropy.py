"""Cross-entropy beside float64 NumPy; chunks change neither numbers nor gradients, but memory."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import ops

V, D = 11, 4


OPTIONS = [
  {},
  {'label_smoothing': 0.1},
  {'z_loss': 0.01},
  {'dft': True},
  {'label_smoothing': 0.2, 'z_loss': 0.02, 'dft': True},
]


def oracle(logits, targets, weights, label_smoothing=0.0, z_loss=0.0, dft=False):
  logits = np.asarray(logits, np.float64)
  largest = logits.max(-1, keepdims=True)
  log_z = np.log(np.exp(logits - largest).sum(-1)) + largest[:, 0]
  log_p = logits - log_z[:, None]
  nats = -log_p[np.arange(len(targets)), targets]
  correct = logits.argmax(-1) == targets
  loss = (1 - label_smoothing) * nats - label_smoothing * log_p.mean(-1)
  loss = loss * (np.exp(-nats) if dft else 1) + z_loss * log_z**2
  return (nats * weights).sum(), (correct * weights).sum(), (loss * weights).sum()


def sample(rows, seed=0):
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(rows, D)).astype(np.float32)
  matrix = rng.normal(size=(D, V)).astype(np.float32)
  targets = rng.integers(0, V, rows).astype(np.int32)
  weights = rng.choice([0.0, 0.5, 1.0], rows).astype(np.float32)
  return features, matrix, targets, weights


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_cross_entropy_is_the_oracle(options):
  features, matrix, targets, weights = sample(9)
  logits = 30 * features @ matrix
  targets[:4] = logits[:4].argmax(-1)
  weights[:2] = 1.0
  got = ops.cross_entropy(logits, targets, weights, **options)
  np.testing.assert_allclose(got, oracle(logits, targets, weights, **options), rtol=1e-5)
  assert got.correct >= 2


def test_the_probability_that_weighs_a_token_is_not_differentiated():
  """DFT's gradient is that of the nats, each row times its probability."""
  features, matrix, targets, weights = sample(4)
  logits = features @ matrix
  p = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), targets[:, None], 1)[:, 0]

  def gradient(weights, **options):
    return jax.grad(lambda x: ops.cross_entropy(x, targets, weights, **options).loss)(logits)

  np.testing.assert_allclose(gradient(weights, dft=True), gradient(weights * p), atol=1e-6)


def head(matrix, x):
  return x @ matrix


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_chunks_take_the_options_and_so_do_their_gradients(options):
  features, matrix, targets, weights = sample(7)
  want = oracle(features @ matrix, targets, weights, **options)

  def total(features, matrix, chunk):
    if chunk is None:
      found = ops.cross_entropy(features @ matrix, targets, weights, **options)
    else:
      found = ops.chunked_cross_entropy(features, head, matrix, targets, weights, chunk, **options)
    return 3 * found.loss, found

  run = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True), static_argnums=2)
  gradients, found = run(features, matrix, 3)
  np.testing.assert_allclose(found, want, rtol=1e-5)
  for got, want in zip(gradients, run(features, matrix, None)[0], strict=True):
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_low_precision_logits_are_summed_wide():
  logits = jnp.zeros((1, 1000), jnp.bfloat16)
  got = ops.cross_entropy(logits, jnp.zeros(1, jnp.int32), jnp.ones(1))
  np.testing.assert_allclose(got.nats, math.log(1000), rtol=1e-6)


def test_a_tie_counts_as_its_share():
  logits = jnp.array([[1.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
  got = ops.cross_entropy(logits, jnp.array([1, 2, 0]), jnp.ones(3))
  np.testing.assert_allclose(got.correct, 1 / 2 + 1 / 4 + 1)


def test_rows_without_weight_have_no_gradient():
  features, matrix, targets, _ = sample(4)
  weights = np.array([1, 0, 1, 0], np.float32)
  gradient = jax.grad(lambda x: ops.cross_entropy(x, targets, weights).nats)(features @ matrix)
  assert not np.asarray(gradient)[[1, 3]].any()
  assert np.asarray(gradient)[[0, 2]].any()


@functools.partial(jax.jit, static_argnums=4)
@functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
def loss(features, matrix, targets, weights, chunk):
  if chunk is None:
    both = ops.cross_entropy(features @ matrix, targets, weights)
  else:
    both = ops.chunked_cross_entropy(features, head, matrix, targets, weights, chunk)
  return both.loss, both.correct


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 9))
def test_chunks_change_nothing(rows, chunk, seed):
  whole, parts = (loss(*sample(rows, seed), size) for size in (None, chunk))
  for got, want in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


def test_lanes():
  """As in a sweep: each lane has a matrix of its own above the same rows."""
  features, matrix, targets, weights = sample(7)

  def slope(matrix, chunk):
    def total(matrix):
      return ops.chunked_cross_entropy(features, head, matrix, targets, weights, chunk).loss

    return jax.grad(total)(matrix)

  got = jax.jit(jax.vmap(lambda m: slope(m, 3)))(jnp.stack([matrix, -matrix]))
  want = [slope(matrix, 7), slope(-matrix, 7)]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_logits_are_computed_once_and_only_what_trains_has_a_gradient():
  """Two products of the size of the head for a frozen one, three for one that trains, none in the
  backward pass."""
  features, matrix, targets, weights = sample(6)

  def products(argnums):
    def total(features, matrix):
      return ops.chunked_cross_entropy(features, head, matrix, targets, weights, 3).loss

    text = jax.jit(jax.grad(total, argnums=argnums)).lower(features, matrix).as_text()
    return text.count('stablehlo.dot_general')

  assert products(0) == 2
  assert products((0, 1)) == 3


def test_codes_and_rows_that_no_gradient_reaches():
  """Integers among the parameters of the head, and features that are constant."""
  features, matrix, targets, weights = sample(6)
  params = {'codes': np.arange(D * V, dtype=np.int8).reshape(D, V) - 20, 'scale': jnp.float32(0.1)}

  def decoded(params, x):
    return x @ (params['codes'] * params['scale'])

  def total(scale, chunk):
    held = {**params, 'scale': scale}
    if chunk:
      return ops.chunked_cross_entropy(features, decoded, held, targets, weights, chunk).loss
    return ops.cross_entropy(decoded(held, features), targets, weights).loss

  got, want = (jax.grad(total)(params['scale'], chunk) for chunk in (4, None))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_chunks_never_hold_all_logits():
  rows, vocabulary, chunk = 2048, 256, 32
  shapes = [
    jax.ShapeDtypeStruct((rows, D), jnp.float32),
    jax.ShapeDtypeStruct((D, vocabulary), jnp.float32),
    jax.ShapeDtypeStruct((rows,), jnp.int32),
    jax.ShapeDtypeStruct((rows,), jnp.float32),
  ]

  def largest(program):
    sizes = re.findall(r'\b[a-z]+[0-9]+\[([0-9,]+)\]', program.as_text())
    return max(math.prod(map(int, size.split(','))) for size in sizes)

  whole, parts = (loss.lower(*shapes, size).compile() for size in (rows, chunk))
  assert largest(whole) >= rows * vocabulary
  assert largest(parts) < rows * vocabulary / 8
  temporary = 4 * rows * vocabulary
  assert whole.memory_analysis().temp_size_in_bytes >= temporary
  assert parts.memory_analysis().temp_size_in_bytes < temporary / 4
