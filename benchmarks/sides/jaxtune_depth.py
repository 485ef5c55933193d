"""The step of a decoder of so many layers, compiled from shapes: seconds, and size of its HLO."""

import argparse
import json
import time


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--method', required=True)
  parser.add_argument('--layers', type=int, required=True)
  options = parser.parse_args()
  import jax
  import jax.numpy as jnp

  import jaxtune as jt

  jax.config.update('jax_enable_compilation_cache', False)
  model = jt.models.decoder(
    jt.models.DecoderConfig(
      vocabulary=4096,
      width=256,
      hidden=704,
      layers=options.layers,
      heads=8,
      kv_heads=4,
      head_width=32,
      rope=jt.ops.Rope(10_000.0),
    )
  )
  rule = jt.optim.create('adamw', 1e-3)
  key = jax.random.key(0)

  def start(key: jax.Array):
    params = jt.adapt.create(options.method, key, model.init(key))
    trainable, frozen = jt.adapt.trainable(params)
    return jt.train.init_state(trainable, rule, key), frozen

  step = jt.train.make_step(jt.losses.causal_lm(model), rule)
  shapes = jax.eval_shape(start, key)
  batch = {'tokens': jax.ShapeDtypeStruct((4, 128), jnp.int32)}
  began = time.perf_counter()
  lowered = jax.jit(step, donate_argnums=0).lower(*shapes, batch)
  traced, spent = time.perf_counter(), time.process_time()
  compiled = lowered.compile()
  ended, spent = time.perf_counter(), time.process_time() - spent
  print(
    json.dumps(
      {
        'trace': traced - began,
        'compile': ended - traced,
        'cpu': spent,
        'lowered_kb': len(lowered.as_text()) / 1e3,
        'optimized_kb': len(compiled.as_text()) / 1e3,
      }
    )
  )


if __name__ == '__main__':
  main()
