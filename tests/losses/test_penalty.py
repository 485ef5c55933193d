"""A penalty counts once in the mean, however the rows are cut, and not at all without weight."""

import jax.numpy as jnp
import numpy as np

from jaxtune import losses
from jaxtune.losses import Loss


def objective(params, batch, key=None):
  assert 'extra' not in params
  weight = batch['weight']
  return Loss(jnp.sum(weight * batch['x']), weight.sum(), {'seen': weight.sum()})


class Squares:
  own = ('extra',)

  def __call__(self, params):
    return jnp.sum(params['w'] ** 2) * params['extra']


PARAMS = {'w': jnp.asarray([1.0, 2.0]), 'extra': jnp.float32(0.5)}
X = np.arange(6, dtype=np.float32)
WEIGHT = np.array([1, 1, 0.5, 1, 0, 0], np.float32)


def parts(size):
  whole = losses.penalized(objective, Squares())
  cut = [{'x': X[i : i + size], 'weight': WEIGHT[i : i + size]} for i in range(0, 6, size)]
  return [whole(PARAMS, batch, None) for batch in cut]


def test_the_mean_loss_gets_it_once_however_a_batch_is_cut():
  want = np.sum(WEIGHT * X) / WEIGHT.sum() + 2.5
  for size in (1, 2, 3, 6):
    total, weight, metrics = (sum(x) for x in zip(*[
      (part.total, part.weight, part.metrics['penalty']) for part in parts(size)
    ], strict=True))  # fmt: skip
    np.testing.assert_allclose(total / weight, want, rtol=1e-6)
    np.testing.assert_allclose(metrics / weight, 2.5, rtol=1e-6)


def test_rows_that_only_fill_a_batch_add_nothing():
  last = parts(2)[-1]
  assert last.total == last.weight == last.metrics['penalty'] == 0


def test_metrics_of_the_objective_are_kept():
  (whole,) = parts(6)
  assert whole.metrics['seen'] == WEIGHT.sum()
