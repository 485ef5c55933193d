"""Log-probabilities of a reference, computed once, are those that a step computes."""

import jax
import numpy as np
import pytest

from jaxtune import adapt, data, losses, models, train, tree

RNG = np.random.default_rng(0)
MODEL = models.decoder(
  models.DecoderConfig(vocabulary=9, width=8, hidden=8, layers=1, heads=2, kv_heads=1)
)
PARAMS = jax.tree.map(lambda x: np.float32(RNG.normal(0, 0.5, x.shape)), MODEL.shapes())


def text():
  length = int(RNG.integers(3, 9))
  return {
    'tokens': RNG.integers(0, 9, length).astype(np.int32),
    'supervised': np.arange(length) >= 2,
  }


EXAMPLES = {
  'dpo': [{'chosen': text(), 'rejected': text()} for _ in range(3)],
  'kto': [{**text(), 'label': np.asarray(i == 1), 'mismatched': text()} for i in range(3)],
}


@pytest.mark.parametrize('name', EXAMPLES)
def test_a_loss_is_that_beside_the_reference_itself(name):
  start = adapt.with_start(adapt.lora(jax.random.key(0), PARAMS, 2, also=None))
  moved = jax.tree.map(lambda x: x + 0.1, adapt.trainable(start)[0])
  params = tree.combine(moved, adapt.trainable(start)[1])
  found = train.reference_log_probs(MODEL, start, EXAMPLES[name], 4, max_length=10, chunk=16)
  assert all('reference' not in example for example in EXAMPLES[name])
  plain, own = (data.eval_batches(x, 4, max_length=10)[0] for x in (EXAMPLES[name], found))
  objective = losses.create(name, MODEL, reference=adapt.policy_and_reference)
  want = jax.jit(objective)(params, plain)
  got = jax.jit(losses.create(name, MODEL))(adapt.without_start(params), own)
  assert abs(want.metrics['margin']) > 0.01
  np.testing.assert_allclose(got.total, want.total, rtol=1e-5)
  np.testing.assert_allclose(got.metrics['margin'], want.metrics['margin'], rtol=1e-4)
