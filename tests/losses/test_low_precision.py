"""A step in bfloat16 above float32 weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, losses, models, train

MODEL = models.decoder(
  models.DecoderConfig(vocabulary=32, width=16, hidden=32, layers=2, heads=2, init_scale=0.1)
)
BATCH = {'tokens': np.random.default_rng(0).integers(0, 32, (4, 12)).astype(np.int32)}


RULE = optax.adamw(1e-2)
PLAIN = losses.causal_lm(MODEL)
LOW = losses.computed_in(PLAIN, 'bfloat16')


def lowered(method):
  params = adapt.create(method, jax.random.key(0), MODEL.init(jax.random.key(1)))
  trainable, frozen = adapt.trainable(params)
  state = train.init_state(trainable, RULE, jax.random.key(0))
  return jax.jit(train.make_step(LOW, RULE)).lower(state, frozen, BATCH), state, frozen


@pytest.mark.parametrize('method', ['full', 'lora'])
def test_products_are_in_few_bits(method):
  text = lowered(method)[0].as_text()
  products = [line for line in text.splitlines() if 'stablehlo.dot_general' in line]
  assert sum('bf16' in line for line in products) >= 0.8 * len(products)


def test_what_trains_is_not_and_the_loss_falls_alike():
  made, state, frozen = lowered('full')
  step, whole = made.compile(), jax.jit(train.make_step(PLAIN, RULE))
  other, first = state, None
  for _ in range(10):
    state, metrics = step(state, frozen, BATCH)
    other, wide = whole(other, frozen, BATCH)
    first = first or float(wide['loss'])
    np.testing.assert_allclose(metrics['loss'], wide['loss'], rtol=0.02)
  assert float(metrics['loss']) < first - 0.05
  floats = [x for x in jax.tree.leaves((state.trainable, state.opt)) if x.ndim]
  assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}


def test_metrics_of_whole_splits_are_computed_alike():
  params = MODEL.init(jax.random.key(1))
  loss, outputs = jax.jit(lambda p: (LOW(p, BATCH), LOW.outputs(p, BATCH)))(params)
  np.testing.assert_allclose(outputs['nats'][0], loss.total, rtol=1e-6)
  assert outputs['nats'].dtype == jnp.float32
