"""One training step of jaxtune, through its public functions."""

import dataclasses

import common
import numpy as np


def main() -> None:
  options = common.arguments()
  versions = common.packages('jaxtune', 'jax', 'optax')
  import jax
  import jax.numpy as jnp

  import jaxtune as jt

  def stacked(shared, name: str) -> jax.Array:
    return jnp.array(np.stack([shared(layer)[name] for layer in range(common.LAYERS)]))

  ones = jnp.ones((common.LAYERS, common.WIDTH))
  block = {
    'attn_norm': {'scale': ones},
    'attn': {name: stacked(common.weights, name) for name in ('q', 'k', 'v', 'o')},
    'mlp_norm': {'scale': ones},
    'mlp': {name: stacked(common.weights, name) for name in ('gate', 'up', 'down')},
  }
  params = {
    'embed': {'tokens': jnp.array(common.embedding())},
    'decoder': {f'0-{common.LAYERS - 1}': block},
    'norm': {'scale': ones[0]},
  }
  model = jt.models.decoder(
    jt.models.DecoderConfig(
      vocabulary=common.VOCABULARY,
      width=common.WIDTH,
      hidden=common.HIDDEN,
      layers=common.LAYERS,
      heads=common.HEADS,
      kv_heads=common.KV_HEADS,
      head_width=common.HEAD_WIDTH,
      rope=jt.ops.Rope(common.ROPE_BASE),
      epsilon=common.EPSILON,
      remat=options.remat,
    )
  )

  def with_shared_start(path: str, leaf):
    if not isinstance(leaf, jt.adapt.LoRA):
      return leaf
    return dataclasses.replace(leaf, a=stacked(common.adapters, path.rsplit('/', 1)[-1]))

  own = dict(common.METHODS[options.method])
  if 'also' in jt.adapt.options_of(options.method):
    own['also'] = None  # the head is the embedding
  params = jt.adapt.create(options.method, jax.random.key(0), params, **own)
  params = jt.tree.map_weights(with_shared_start, params)
  trainable, frozen = jt.adapt.trainable(params)
  optimizer = common.adamw(options.method)
  state = jt.train.init_state(trainable, optimizer, jax.random.key(0))
  del (
    params,
    block,
    trainable,
  )  # the step donates what is trained; a second copy would count as its memory
  step = jax.jit(jt.train.make_step(jt.losses.causal_lm(model), optimizer), donate_argnums=0)

  def one(tokens: np.ndarray) -> float:
    nonlocal state
    state, metrics = step(state, frozen, {'tokens': tokens})
    return float(metrics['loss'])

  common.report(one, options.steps, versions)


if __name__ == '__main__':
  main()
