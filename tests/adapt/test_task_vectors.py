"""Task vectors and merged adapters against the rules written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, tree
from jaxtune.adapt.input_lora import InputLoRA
from jaxtune.typing import InputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
  return np.asarray(RNG.normal(size=shape), np.float32)


def plain():
  return {'decoder': {'0-1': {'attn': {'q': normal(2, 6, 5)}}}, 'norm': {'scale': normal(6)}}


BASE = plain()


def shaken(params):
  trainable, frozen = adapt.trainable(params)
  return tree.combine(jax.tree.map(lambda x: x + normal(*x.shape), trainable), frozen)


def q(params):
  return params['decoder']['0-1']['attn']['q']


def trim(x, density):
  """The largest entries of one matrix, by sorting."""
  kept = np.argsort(-np.abs(x), axis=None)[: int(density * x.size)]
  out = np.zeros(x.size)
  out[kept] = np.ravel(x)[kept]
  return out.reshape(x.shape)


def ties(tensors, weights, density, sign='total'):
  """arXiv:2306.01708, algorithm 1, with a weight for each."""
  tensors = [trim(np.float64(t), density) for t in tensors]
  out = np.zeros(tensors[0].shape)
  for at in np.ndindex(*out.shape):
    values = [t[at] for t in tensors]
    vote = sum(values) if sign == 'total' else sum(np.sign(values))
    elected = 1 if vote >= 0 else -1
    agree = [w * v for w, v in zip(weights, values, strict=True) if np.sign(v) == elected]
    out[at] = sum(agree) / len(agree) if agree else 0
  return out


def test_a_task_vector_is_what_tuning_added_and_is_taken_away_again():
  tuned = {**shaken(adapt.full(KEY, BASE)), 'head': normal(3)}
  vector = adapt.task_vector(BASE, tuned)
  assert set(vector) == {'decoder/0-1/attn/q', 'norm/scale'}
  again = adapt.apply_task_vectors(BASE, [vector], [1.0])
  np.testing.assert_allclose(q(again), q(tuned), atol=1e-6)
  both = adapt.apply_task_vectors(BASE, [vector, vector], [0.75, -0.5])
  want = np.float64(q(BASE)) + 0.25 * (np.float64(q(tuned)) - q(BASE))
  np.testing.assert_allclose(q(both), want, atol=1e-6)
  part = adapt.apply_task_vectors(BASE, [{'norm/scale': vector['norm/scale']}], [1.0])
  assert q(part) is q(BASE)


def test_adapters_of_the_tuned_model_are_merged_first():
  tuned = shaken(adapt.lora(KEY, BASE, 2, select='attn/q'))
  leaf = q(tuned)
  want = np.float64(leaf.scale)[:, None, None] * (np.float64(leaf.a) @ np.float64(leaf.b))
  np.testing.assert_allclose(adapt.task_vector(BASE, tuned)['decoder/0-1/attn/q'], want, atol=1e-5)
  # A bfloat16 base does not round what was added to it.
  low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), BASE)
  tuned['decoder']['0-1']['attn']['q'] = type(leaf)(q(low), leaf.a, leaf.b, leaf.scale)
  np.testing.assert_allclose(adapt.task_vector(low, tuned)['decoder/0-1/attn/q'], want, atol=1e-5)


@pytest.mark.parametrize('sign', ['total', 'frequency'])
def test_ties_is_the_algorithm_of_the_paper_layer_by_layer(sign):
  vectors = [{'decoder/0-1/attn/q': normal(2, 6, 5)} for _ in range(3)]
  weights = [1.0, 0.5, -0.25]
  got = adapt.apply_task_vectors(BASE, vectors, weights, 'ties', density=0.4, sign=sign)
  for layer in range(2):
    tensors = [v['decoder/0-1/attn/q'][layer] for v in vectors]
    want = np.float64(q(BASE)[layer]) + ties(tensors, weights, 0.4, sign)
    np.testing.assert_allclose(q(got)[layer], want, atol=1e-6)


def test_magnitude_pruning():
  tensors = [normal(6, 5) for _ in range(2)]
  got = adapt.merge_tensors(tensors, [1.0, 2.0], 'magnitude_prune', 0.3)
  np.testing.assert_allclose(got, trim(tensors[0], 0.3) + 2 * trim(tensors[1], 0.3), rtol=1e-5)
  np.testing.assert_array_equal(
    adapt.merge_tensors(tensors, [1.0, 2.0], 'magnitude_prune', 0.001), 0
  )


def test_dare_drops_and_rescales_without_bias():
  tensors = [np.ones(20000, np.float32), 2 * np.ones(20000, np.float32)]
  got = adapt.merge_tensors(tensors, [1.0, 0.5], 'dare_linear', 0.25, key=KEY)
  assert set(np.unique(got)) == {0.0, 4.0, 8.0}
  np.testing.assert_allclose(got.mean(), 2.0, rtol=0.05)
  again = adapt.merge_tensors(tensors, [1.0, 0.5], 'dare_linear', 0.25, key=KEY)
  np.testing.assert_array_equal(got, again)
  # The mean over those that were not dropped, and that agree with the sum.
  mean = adapt.merge_tensors([tensors[0], -tensors[1]], [1.0, 1.0], 'dare_ties', 0.25, key=KEY)
  assert set(np.unique(mean)) == {-8.0, 0.0, 4.0}
  vectors = [{'decoder/0-1/attn/q': normal(2, 6, 5)}]
  keys = [jax.random.key(i) for i in (0, 0, 1)]
  a, b, c = (
    q(adapt.apply_task_vectors(BASE, vectors, [1.0], 'dare_linear', density=0.5, key=k))
    for k in keys
  )
  np.testing.assert_array_equal(a, b)
  assert np.any(a != c)
  changed = (a != q(BASE)).mean((1, 2))  # each layer by itself, not all alike
  assert np.all(changed > 0) and np.any((a != q(BASE))[0] != (a != q(BASE))[1])


def adapters(ranks=(2, 2)):
  return [
    shaken(adapt.lora(jax.random.key(i), BASE, r, alpha=3.0 + i, select='attn/q'))
    for i, r in enumerate(ranks)
  ]


def product(params):
  leaf = q(params)
  return np.float64(leaf.scale)[:, None, None] * (np.float64(leaf.a) @ np.float64(leaf.b))


def test_side_by_side_and_by_singular_values():
  both = adapters((2, 1))
  weights = [0.7, -0.4]
  want = 0.7 * product(both[0]) - 0.4 * product(both[1])
  merged = adapt.merge_adapters(both, weights, 'cat')
  np.testing.assert_allclose(product(merged), want, atol=1e-5)
  assert q(merged).a.shape == (2, 6, 3) and q(merged).base is q(BASE)
  assert merged.rules == both[0].rules
  np.testing.assert_array_equal(q(merged).scale, 1)
  np.testing.assert_allclose(product(adapt.merge_adapters(both, weights, 'svd', rank=3)), want,
                             atol=1e-5)  # fmt: skip
  u, s, vt = np.linalg.svd(want)
  nearest = (u[:, :, :2] * s[:, None, :2]) @ vt[:, :2]
  np.testing.assert_allclose(
    product(adapt.merge_adapters(both, weights, 'svd')), nearest, atol=1e-5
  )


@pytest.mark.parametrize('method', ['linear', 'ties'])
def test_merged_on_factors(method):
  both = adapters()
  weights = [0.7, -0.4]
  merged = q(adapt.merge_adapters(both, weights, method, density=0.6))
  for layer in range(2):
    c = [w * float(q(p).scale[layer]) for w, p in zip(weights, both, strict=True)]
    roots = [np.sqrt(abs(x)) for x in c]
    for got, field, shares in (
      (merged.a, 'a', [r * np.sign(x) for r, x in zip(roots, c, strict=True)]),
      (merged.b, 'b', roots),
    ):
      tensors = [np.float64(getattr(q(p), field)[layer]) for p in both]
      if method == 'linear':
        want = sum(s * t for s, t in zip(shares, tensors, strict=True))
      else:
        want = ties(tensors, shares, 0.6)
      np.testing.assert_allclose(got[layer], want, atol=1e-5)


def test_merged_products_cut_to_a_rank():
  both = adapters()
  merged = adapt.merge_adapters(both, [1.0, 1.0], 'ties_svd', rank=5, density=0.5)
  for layer in range(2):
    want = ties([product(p)[layer] for p in both], [1.0, 1.0], 0.5)
    np.testing.assert_allclose(product(merged)[layer], want, atol=1e-4)


def test_the_kind_of_the_adapter_and_its_dropout_stay():
  both = [lora(dropout=0.1), lora()]
  assert type(q(adapt.merge_adapters(both, [0.5, 0.5]))) is adapt.DroppedLoRA
  both = [of_inputs(params) for params in adapters()]
  assert type(q(adapt.merge_adapters(both, [0.5, 0.5]))) is InputLoRA


def test_noise_is_of_the_key():
  a, b, c = (
    q(adapt.merge_adapters(adapters_of_one, [1.0, 1.0], 'dare_ties', density=0.5, key=key)).a
    for adapters_of_one in [adapters()]
    for key in (KEY, KEY, jax.random.key(1))
  )
  np.testing.assert_array_equal(a, b)
  assert np.any(a != c)


def other_base():
  return {**BASE, 'norm': {'scale': normal(6)}}


def lora(base=BASE, **options):
  return adapt.lora(KEY, base, **{'rank': 2, 'select': 'attn/q', **options})


def of_inputs(params):
  def one(path, leaf):
    return InputLoRA(*vars(leaf).values()) if isinstance(leaf, adapt.LoRA) else leaf

  return tree.map_weights(one, params)


def heads():
  made = [lora({**BASE, 'head': {'dense': normal(5, 2)}}) for _ in range(2)]
  return made


CANNOT = {
  'other kind': (
    lambda: [lora(), adapt.dora(KEY, BASE, 2, select='attn/q')],
    {},
    "'decoder/0-1/attn/q' of adapter 2 is a DoRA, and only LoRA",
  ),
  'of inputs alone': (
    lambda: [lora(), of_inputs(lora())],
    {},
    'is a LoRA in adapter 1 and a InputLoRA in adapter 2',
  ),
  'no adapter': (lambda: [lora(), BASE], {}, 'adapter 2 has no LoRA'),
  'other targets': (
    lambda: [lora(BASE | {'attn': {'k': BASE['decoder']['0-1']['attn']['q'][0]}}, select='q|k'),
             lora(BASE | {'attn': {'k': BASE['decoder']['0-1']['attn']['q'][0]}})],
    {},
    "adapter 1 is on 'attn/k' and adapter 2 is not",
  ),
  'other base under it': (lambda: [lora(), lora(plain())], {}, 'weights under .* 1 and 2 differ'),
  'other base': (lambda: [lora(), lora(other_base())], {}, "'norm/scale' differs .* of one base"),
  'ranks': (
    lambda: [lora(), lora(rank=1)],
    {},
    "on 'decoder/0-1/attn/q' adapter 1 has rank 2 and adapter 2 rank 1; linear needs equal ranks",
  ),
  'heads': (heads, {}, "'head/dense' differs .* which trained it whole, .* give the same in all"),
  'PiSSA': (lambda: [lora(start='pissa')] * 2, {}, 'adapter 1 lies a Residual, so that the base'),
  'nested': (lambda: [lora(lora())] * 2, {}, 'adapter 1 lies a LoRA'),
  'rank of svd': (lambda: [lora()] * 2, {'method': 'svd', 'rank': 5}, 'at most 4; choose a rank'),
  'rank of linear': (lambda: [lora()] * 2, {'rank': 2}, 'linear has no rank to choose'),
  'weights': (lambda: [lora()], {}, '1 given with 2 weights'),
  'method': (lambda: [lora()] * 2, {'method': 'x'}, "method is 'x'; known: cat, linear"),
  'density': (lambda: [lora()] * 2, {'method': 'ties'}, 'density is None; ties needs the share'),
  'key': (lambda: [lora()] * 2, {'method': 'dare_ties', 'density': 0.5}, 'needs a key'),
  'sign': (lambda: [lora()] * 2, {'sign': 'most'}, "sign is 'most'; known: total, frequency"),
}  # fmt: skip


@pytest.mark.parametrize('name', CANNOT)
def test_adapters_that_cannot_be_merged_say_why_in_one_line(name):
  make, options, message = CANNOT[name]
  with pytest.raises(InputError, match=message) as error:
    adapt.merge_adapters(make(), [0.5, 0.5], **options)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'bad, message',
  [
    (lambda: adapt.task_vector({'a': normal(2)}, {'b': normal(2)}), 'no parameter in common'),
    (lambda: adapt.task_vector({'a': normal(2)}, {'a': normal(3)}), r"'a' is \(2,\) in the base"),
    (lambda: adapt.apply_task_vectors(BASE, [{'x': normal(2)}], [1.0]), 'has no such parameter'),
    (lambda: adapt.apply_task_vectors(lora(), [{}], [1.0]), 'is a LoRA; adapt.merge it first'),
    (lambda: adapt.apply_task_vectors(BASE, [], []), '0 given with 0 weights'),
  ],
)
def test_bad_vectors(bad, message):
  with pytest.raises(InputError, match=message):
    bad()
