"""Merged weights apart again, and the difference that merging makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, ops
from jaxtune.typing import InputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
  return jnp.asarray(RNG.normal(size=shape), dtype)


def params(dtype=np.float32, **options):
  """Some LoRA on one of two stacked matrices."""
  base = {
    'decoder': {'0-1': {'attn': {'q': normal(2, 6, 5, dtype=dtype)}}},
    'head': normal(5, 4, dtype=dtype),
  }
  adapted = adapt.lora(KEY, base, 2, select='attn/q', **options)
  leaf = adapted['decoder']['0-1']['attn']['q']
  tuned = dict(vars(leaf), b=leaf.b + normal(*leaf.b.shape))
  adapted['decoder']['0-1']['attn']['q'] = type(leaf)(**tuned)
  return base, adapted


def q(tree):
  return tree['decoder']['0-1']['attn']['q']


@pytest.mark.parametrize('start', ['kaiming', 'pissa'])
def test_what_was_merged_comes_apart_again(start):
  base, adapted = params(start=start)
  again = adapt.unmerge(adapt.merge(adapted), adapted)
  inside = adapt.base_of(q(adapted))  # of PiSSA what is left of the weight
  np.testing.assert_allclose(q(again), inside, atol=1e-5)
  assert again['head'] is adapted['head']
  if start == 'kaiming':
    assert jax.tree.structure(again) == jax.tree.structure(base)


def test_one_adapter_on_another_comes_apart_at_once():
  base, adapted = params()
  outer = adapt.lora(jax.random.key(1), adapted, 3, select='attn/q')
  np.testing.assert_allclose(q(adapt.unmerge(adapt.merge(outer), outer)), q(base), atol=1e-5)


def test_bfloat16_comes_back_to_its_rounding_only():
  base, adapted = params(jnp.bfloat16)
  merged = adapt.merge(adapted)
  again = q(adapt.unmerge(merged, adapted))
  assert again.dtype == jnp.bfloat16
  error = np.abs(np.float32(again) - np.float32(q(base)))
  # Half a unit in the last place of the merged weight, and then of what is left.
  room = 2.0**-8 * (np.abs(np.float32(q(merged))) + np.abs(np.float32(again)))
  assert np.all(error <= room)
  assert error.max() > 0


def test_other_adapters_are_refused():
  _, adapted = params()
  with pytest.raises(InputError, match="have no 'decoder/0-1/attn/q'"):
    adapt.unmerge({'head': normal(5, 4)}, adapted)
  ia3 = adapt.ia3(KEY, {'attn': {'k': normal(6, 5)}}, also=None)
  with pytest.raises(InputError, match="'attn/k' is a IA3, and only a LoRA"):
    adapt.unmerge(adapt.merge(ia3), ia3)


def test_the_difference_that_merging_makes_is_measured():
  def apply(params, x):
    return ops.dot(ops.dot(x, jax.tree.map(lambda w: w[0], q(params))), params['head'])

  base, adapted = params()
  x = normal(3, 6)
  found = adapt.merge_difference(apply, adapted, adapt.merge(adapted), x)
  assert set(found) == {'max_abs', 'scale'}
  assert found['max_abs'] <= 1e-5 * found['scale']
  other = adapt.merge_difference(apply, adapted, base, x)
  np.testing.assert_allclose(
    other['max_abs'], np.abs(apply(adapted, x) - apply(base, x)).max(), rtol=1e-5
  )
  np.testing.assert_allclose(other['scale'], np.abs(apply(adapted, x)).max(), rtol=1e-5)
