"""The forecast is the compiler's own account of the very step."""

import jax
import numpy as np

from jaxtune import losses, models, optim, plan, train, tree


def test_forecast_from_shapes_counts_what_the_step_holds():
  config = models.DecoderConfig(
    vocabulary=128, width=32, hidden=64, layers=2, heads=4, kv_heads=2, head_width=8
  )
  model = models.decoder(config)
  optimizer = optim.create('adamw', 1e-3)
  objective = losses.causal_lm(model)
  step = jax.jit(train.make_step(objective, optimizer), donate_argnums=0)
  rules = ((r'decoder/', True), (r'', False))

  def initial(key):
    trainable, frozen = tree.partition(model.init(key), rules)
    return train.init_state(trainable, optimizer, key), frozen

  state, frozen = jax.eval_shape(initial, jax.random.key(0))
  batch = {'tokens': jax.ShapeDtypeStruct((4, 16), np.int32)}
  forecast = plan.forecast(step.lower(state, frozen, batch).compile(), state, frozen, batch)
  layers = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32)
  assert forecast.trainable == 4 * layers
  assert forecast.base == 4 * (128 * 32 + 32)
  assert forecast.batch == 4 * 16 * 4
  assert 2 * forecast.trainable <= forecast.optimizer <= 2 * forecast.trainable + 100
  held = forecast.base + forecast.trainable + forecast.optimizer + forecast.batch
  assert forecast.temporaries > 4 * 16 * 128 * 4  # the logits at least
  assert held + forecast.temporaries <= forecast.total <= held + forecast.temporaries + 4096
