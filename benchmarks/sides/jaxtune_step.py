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

  low = options.device == 'gpu'
  base = jnp.bfloat16 if low and options.method != 'full' else jnp.float32

  def stacked(shared, name: str, dtype=jnp.float32) -> jax.Array:
    whole = np.stack([shared(layer)[name] for layer in range(common.LAYERS)])
    return jnp.asarray(whole, dtype)

  ones = jnp.ones((common.LAYERS, common.WIDTH))
  block = {
    'attn_norm': {'scale': ones},
    'attn': {name: stacked(common.weights, name, base) for name in ('q', 'k', 'v', 'o')},
    'mlp_norm': {'scale': ones},
    'mlp': {name: stacked(common.weights, name, base) for name in ('gate', 'up', 'down')},
  }
  params = {
    'embed': {'tokens': jnp.asarray(common.embedding(), base)},
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
      remat='full' if options.remat else 'products',
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
  objective = jt.losses.causal_lm(model, chunk=options.chunk)
  program = jt.train.prepare(
    model,
    params,
    jt.losses.computed_in(objective, 'bfloat16') if low else objective,
    common.adamw(options.method),
    iter(()),
    example={'tokens': next(common.batches())},
    accumulate=options.accumulate,
  )
  state = program.state
  del params, block  # the step donates what is trained; a second copy would count as its memory

  def one(tokens: np.ndarray) -> float:
    nonlocal state
    state, metrics = program.step(state, program.frozen, program.place({'tokens': tokens}))
    return float(metrics['loss'])

  device = jax.devices()[0]

  def device_peak() -> int:
    return device.memory_stats()['peak_bytes_in_use']

  peak = device_peak if low else None
  common.report(one, options.steps, versions, options.method, device.device_kind, peak)


if __name__ == '__main__':
  main()
