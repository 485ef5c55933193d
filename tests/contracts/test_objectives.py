"""What every objective keeps: a pure function, the same eager, compiled and mapped over lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import losses, models

B, T = 2, 4
RNG = np.random.default_rng(0)
ENCODER = {'vocabulary': 9, 'width': 4, 'hidden': 4, 'layers': 1, 'heads': 1, 'positions': T}
DECODER = {'vocabulary': 9, 'width': 4, 'hidden': 4, 'layers': 1, 'heads': 1, 'kv_heads': 1}
OBJECTIVES = {
  'causal_lm': (
    losses.causal_lm(models.decoder(models.DecoderConfig(**DECODER, head_width=4)), chunk=3),
    {'supervised': RNG.random((B, T)) < 0.9},
  ),
  'classification': (
    losses.classification(models.encoder(models.EncoderConfig(**ENCODER, outputs=3))),
    {'label': np.array([2, 0], np.int32)},
  ),
  'mean_squared_error': (
    losses.mean_squared_error(models.encoder(models.EncoderConfig(**ENCODER, outputs=1))),
    {'label': np.array([0.5, -1.0], np.float32)},
  ),
  'penalized': (
    losses.penalized(
      losses.classification(models.encoder(models.EncoderConfig(**ENCODER, outputs=3))),
      lambda params: jnp.sum(params['head']['dense'] ** 2),
    ),
    {'label': np.array([2, 0], np.int32)},
  ),
}
MODELS = {
  'causal_lm': models.decoder(models.DecoderConfig(**DECODER, head_width=4)),
  'classification': models.encoder(models.EncoderConfig(**ENCODER, outputs=3)),
  'mean_squared_error': models.encoder(models.EncoderConfig(**ENCODER, outputs=1)),
  'penalized': models.encoder(models.EncoderConfig(**ENCODER, outputs=3)),
}


def test_every_objective_is_under_contract():
  assert set(OBJECTIVES) == set(losses.__all__) - {'Loss', 'Objective'}


@pytest.mark.parametrize('name', OBJECTIVES)
def test_eager_compiled_and_mapped_are_one(name):
  objective, own = OBJECTIVES[name]
  tokens = RNG.integers(0, 9, (B, T)).astype(np.int32)
  batch = {'tokens': tokens, 'mask': np.ones((B, T), bool), **own}
  shapes = MODELS[name].shapes()
  lanes = jax.tree.map(lambda x: np.float32(RNG.normal(0, 0.5, (2, *x.shape))), shapes)
  mapped = jax.jit(jax.vmap(objective, in_axes=(0, None, None)))(lanes, batch, None)
  compiled = jax.jit(objective)
  for lane in range(2):
    params = jax.tree.map(lambda x, n=lane: x[n], lanes)
    loss = compiled(params, batch, None)
    close(loss, jax.tree.map(lambda x, n=lane: x[n], mapped))
  close(loss, objective(params, batch, None))

  assert isinstance(loss, losses.Loss)
  assert all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loss))
  assert loss.total > 0 and loss.weight > 0


def close(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
