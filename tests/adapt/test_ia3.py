"""IA3: vectors on the inputs or outputs of a weight, its bias included, wherever it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, models, ops, tree
from jaxtune.typing import InputError
from tests.adapt.leaves import check_products, check_scanned

L, IN, OUT = 3, 6, 5
KEY = jax.random.key(0)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def leaf(lead=(), inside=False, base=None):
  base = normal(*lead, IN, OUT) if base is None else base
  return adapt.IA3(base, normal(*lead, IN if inside else OUT, seed=1 + inside), inside)


def lora(lead, base):
  return adapt.LoRA(base, normal(*lead, IN, 2), normal(*lead, 2, OUT), normal(*lead) + 2)


def dense(w):
  """The matrix in float64."""
  if isinstance(w, adapt.LoRA):
    return dense(w.base) + np.float64(w.scale)[..., None, None] * (np.float64(w.a) @ w.b)
  if isinstance(w, adapt.IA3):
    l = np.float64(w.l)  # noqa: E741
    return dense(w.base) * (l[..., :, None] if w.inside else l[..., None, :])
  return np.float64(w)


LEAVES = {
  'outputs': leaf,
  'inputs': lambda lead: leaf(lead, True),
  'both': lambda lead: leaf(lead, True, leaf(lead)),
  'on LoRA': lambda lead: leaf(lead, False, lora(lead, normal(*lead, IN, OUT))),
  'under LoRA': lambda lead: lora(lead, leaf(lead)),
}
kinds = pytest.mark.parametrize('make', LEAVES.values(), ids=LEAVES)


@kinds
def test_products_are_those_of_the_dense_matrix(make):
  check_products(make(()), dense(make(())), 2e-5)


@kinds
def test_stacks_are_scanned_like_arrays(make):
  check_scanned(make((L,)), dense(make((L,))), 2e-5)


@kinds
def test_the_bias_is_scaled_with_the_outputs_alone(make):
  """PEFT's and the paper's `(x W + bias) * l`, in the product, dense and merged."""
  w, x, bias = make(()), normal(4, IN), normal(OUT, seed=3)
  scaled = bias * (1 if make is LEAVES['inputs'] else leaf().l)
  want = x @ dense(w) + np.asarray(scaled)[None]
  np.testing.assert_allclose(ops.affine(x, w, bias), want, atol=3e-5)
  np.testing.assert_allclose(ops.affine(x[None], w, bias)[0], want, atol=3e-5)
  own = {'a': {'kernel': w, 'bias': bias}, 'b': {'q': w, 'q_bias': bias}}
  plain = {'a': {'kernel': dense(w), 'bias': scaled}, 'b': {'q': dense(w), 'q_bias': scaled}}
  for made in (ops.materialize_all(own), adapt.merge(own)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), made, plain)


def test_the_layers_of_a_stack_have_a_bias_each():
  w, bias = leaf((L,)), normal(L, OUT, seed=3)
  merged = adapt.merge({'q': w, 'q_bias': bias})
  np.testing.assert_allclose(merged['q_bias'], bias * w.l, atol=1e-6)


def test_small_steps_show_in_bfloat16():
  """From 1 the next number in bfloat16 is 1.0078; l stays float32 and rounds the product alone."""
  x = jnp.full((1, 1), 129 / 128, jnp.bfloat16)
  for inside in (True, False):
    w = adapt.IA3(jnp.ones((1, 1), jnp.bfloat16), jnp.full(1, 1.0039, jnp.float32), inside)
    assert ops.dot(x, w).dtype == jnp.bfloat16
    assert ops.dot(x, w)[0, 0] == 1.015625 and ops.dot_transposed(x, w)[0, 0] == 1.015625
    assert ops.take(w, jnp.array([0])).dtype == ops.materialize(w).dtype == jnp.bfloat16


SIZES = {'vocabulary': 8, 'width': 4, 'hidden': 6, 'layers': 2, 'heads': 2}


def chosen(config, **options):
  """Path of each leaf to the size of its vectors and whether they scale the input."""
  model = models.build(config)
  adapted = jax.eval_shape(lambda: adapt.ia3(KEY, model.init(KEY), **options))
  leaves = [(p, w) for p, w in tree.named_weights(adapted) if isinstance(w, adapt.IA3)]
  return {path: (w.l.shape, w.inside) for path, w in leaves}


def test_keys_values_and_the_mlps_inner_activations_by_default():
  assert chosen(models.DecoderConfig(**SIZES, kv_heads=1)) == {
    'decoder/0-1/attn/k': ((2, 2), False),
    'decoder/0-1/attn/v': ((2, 2), False),
    'decoder/0-1/mlp/down': ((2, 6), True),
  }
  both = chosen(models.EncoderDecoderConfig(**SIZES, decoder_layers=1))
  assert len(both) == 3 + 5
  assert both['decoder/0-0/cross/k'] == both['decoder/0-0/cross/v'] == ((1, 128), False)
  experts = chosen(models.DecoderConfig(**SIZES, experts=3, expert_hidden=5))
  assert experts['decoder/0-1/experts/down'] == ((2, 3, 5), True)


def test_rules_may_choose_the_side():
  config = models.EncoderConfig(**SIZES)
  rules = ((r'attn/q$', {'inside': ''}), (r'attn/o$', True), (r'', False))
  assert chosen(config, select=rules, inside='o$') == {
    'encoder/0-1/attn/q': ((2, 4), True),
    'encoder/0-1/attn/o': ((2, 4), True),
  }
  assert not any(inside for _, inside in chosen(config, inside='(?!)').values())


def test_only_the_vectors_and_a_head_are_trained():
  params = {'attn': {'k': jnp.ones((4, 6))}, 'head': {'dense': jnp.ones((4, 4))}}
  trainable, frozen = adapt.trainable(adapt.ia3(KEY, params))
  assert trainable['attn']['k'].base is None and trainable['head']['dense'] is not None
  assert (trainable['attn']['k'].l == jnp.ones(6)).all()
  assert frozen['attn']['k'].base is params['attn']['k'] and frozen['attn']['k'].l is None


def test_a_classifier_of_tokens_scales_its_bias_too():
  """Where a bias is beside a matrix, the product is the merged model's, in heads as well."""
  model = models.build(models.DecoderConfig(**SIZES, outputs=3, each_token=True))
  plain = {'head': {'dense': normal(4, 3), 'dense_bias': normal(3, seed=1)}}
  tuned = adapt.ia3(KEY, plain, select='head/dense$', also=None)
  tuned['head']['dense'] = adapt.IA3(plain['head']['dense'], jnp.array([2.0, -1.0, 0.5]))
  x = normal(2, 3, 4)
  got, want, before = (model.head(p, x) for p in (tuned, adapt.merge(tuned), plain))
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(got - before).max() > 0.1


@pytest.mark.parametrize(
  'options, words',
  [
    ({'select': 'norm/scale'}, "ia3 needs a matrix, and 'norm/scale' has the shape"),
    ({'select': 'nothing'}, "ia3: select 'nothing' matches no parameter"),
    ({'inside': '(mlp'}, r"ia3: inside is '\(mlp'; it must be a regular expression"),
    ({'inside': True}, 'ia3: inside is True'),
    ({'select': ((r'attn/k', {'rank': 2}), (r'', False))}, 'its options are inside'),
  ],
)
def test_bad_input(options, words):
  params = {'attn': {'k': jnp.ones((4, 6))}, 'norm': {'scale': jnp.ones(4)}}
  with pytest.raises(InputError, match=words) as error:
    adapt.ia3(KEY, params, **options)
  assert '\n' not in str(error.value)
