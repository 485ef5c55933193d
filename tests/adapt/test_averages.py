"""Interpolation and means, in the weights that the leaves stand for."""

import jax
import numpy as np
import pytest

from jaxtune import adapt, tree
from jaxtune.typing import InputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
  return np.asarray(RNG.normal(size=shape), np.float32)


def plain():
  return {'decoder': {'0-1': {'attn': {'q': normal(2, 6, 5)}}}, 'norm': {'scale': normal(6)}}


def shaken(params):
  trainable, frozen = adapt.trainable(params)
  return tree.combine(jax.tree.map(lambda x: x + normal(*x.shape), trainable), frozen)


def q(params):
  """The matrix that stands at the adapted place, float64."""

  def dense(leaf):
    if isinstance(leaf, adapt.LoRA):
      product = np.float64(leaf.scale)[:, None, None] * (np.float64(leaf.a) @ np.float64(leaf.b))
      return dense(leaf.base) + product
    return dense(leaf.base) if adapt.is_adapter(leaf) else np.float64(leaf)

  return dense(params['decoder']['0-1']['attn']['q'])


def test_between_two_plain_models():
  start, tuned = adapt.full(KEY, plain()), adapt.full(KEY, plain())
  got = adapt.interpolate(start, tuned, 0.25)
  assert got.rules == tuned.rules
  np.testing.assert_allclose(q(got), 0.75 * q(start) + 0.25 * q(tuned), rtol=1e-6)
  mean = adapt.soup([start, tuned, got])
  np.testing.assert_allclose(q(mean), (q(start) + q(tuned) + q(got)) / 3, rtol=1e-5)
  same = adapt.soup([tuned, start], [1.0, 0.0])
  np.testing.assert_array_equal(q(same), q(tuned))
  assert same['norm']['scale'].dtype == np.float32


STARTS = {
  'the plain base': (lambda base, first: base, 'kaiming', 2),
  'the adapter at its start': (lambda base, first: first, 'kaiming', 4),
  'another adapter': (lambda base, first: shaken(first), 'kaiming', 4),
  'PiSSA from the base': (lambda base, first: base, 'pissa', 4),
  'PiSSA at its start': (lambda base, first: first, 'pissa', 4),
}


@pytest.mark.parametrize('name', STARTS)
def test_lora_is_interpolated_in_the_weights_that_it_stands_for(name):
  make, begin, rank = STARTS[name]
  base = plain()
  first = adapt.lora(KEY, base, 2, select='attn/q', start=begin)
  start, tuned = make(base, first), shaken(first)
  for alpha in (0.0, 0.3, 1.0):
    got = adapt.interpolate(start, tuned, alpha)
    want = (1 - alpha) * q(start) + alpha * q(tuned)
    np.testing.assert_allclose(q(got), want, atol=2e-5)
  assert got['decoder']['0-1']['attn']['q'].a.shape[-1] == rank
  assert got['norm']['scale'] is base['norm']['scale']  # frozen: the same array


def test_one_lora_on_another():
  base = plain()
  inner = shaken(adapt.lora(KEY, base, 2, select='attn/q'))
  tuned = shaken(adapt.lora(KEY, inner, 3, select='attn/q'))
  got = adapt.interpolate(base, tuned, 0.3)
  np.testing.assert_allclose(q(got), 0.7 * q(base) + 0.3 * q(tuned), atol=2e-5)


def test_bfloat16_stays_and_is_rounded_once():
  low = {'w': normal(64).astype('bfloat16')}
  high = {'w': normal(64).astype('bfloat16')}
  got = adapt.interpolate(low, high, 0.1)['w']
  want = (0.9 * np.float32(low['w']) + np.float32(0.1) * np.float32(high['w'])).astype('bfloat16')
  assert got.dtype == want.dtype
  np.testing.assert_allclose(np.float32(got), np.float32(want), rtol=2**-8)


LORA = adapt.lora(KEY, plain(), 2, select='attn/q')


@pytest.mark.parametrize(
  'bad, message',
  [
    (lambda: adapt.interpolate({'a': normal(2)}, {'b': normal(2)}, 0.5), "only one .* has 'a'"),
    (lambda: adapt.interpolate({'a': normal(2)}, {'a': normal(3)}, 0.5), r'shapes \(2,\) and \(3,'),
    (lambda: adapt.interpolate(plain(), plain(), float('nan')), 'alpha is nan'),
    (lambda: adapt.interpolate(LORA, plain(), 0.5), 'is a LoRA and a plain array'),
    (lambda: adapt.soup([]), 'no models are given'),
    (lambda: adapt.soup([plain()], [1.0, 2.0]), '2 weights for 1 models'),
    (lambda: adapt.soup([LORA, shaken(LORA)]), "attn/q' is a LoRA, .* adapt.merge each model"),
  ],
)
def test_bad_input_is_one_clear_line(bad, message):
  with pytest.raises(InputError, match=message) as error:
    bad()
  assert '\n' not in str(error.value)
