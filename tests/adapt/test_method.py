"""Full fine-tuning, freezing and probes are tables of rules."""

import jax
import jax.numpy as jnp
import pytest

from jaxtune import adapt, tree
from jaxtune.typing import InputError

KEY = jax.random.key(0)
PARAMS = {
  'embed': {'tokens': jnp.ones((3, 2))},
  'encoder': {'0-1': {'attn': {'q': jnp.ones((2, 2, 2))}}},
  'head': {'dense': jnp.ones((2, 2)), 'dense_bias': jnp.ones(2)},
}
BODY = {name: leaf for name, leaf in PARAMS.items() if name != 'head'}


def trained(adapted):
  return {route.path for route in tree.routing(adapted.rules, adapted) if route.value}


def test_full_trains_everything():
  adapted = adapt.full(KEY, PARAMS)
  assert adapted == PARAMS
  assert trained(adapted) == {path for path, _ in tree.named_weights(PARAMS)}


def test_a_probe_trains_the_head_alone():
  adapted = adapt.probe(KEY, PARAMS)
  assert adapted == PARAMS
  assert trained(adapted) == {'head/dense', 'head/dense_bias'}


def test_a_probe_needs_a_head():
  with pytest.raises(InputError, match='add one with models.classifier'):
    adapt.probe(KEY, BODY)


def test_freezing_follows_its_rules():
  adapted = adapt.freeze(KEY, PARAMS, [('encoder/', False), ('', True)])
  assert trained(adapted) == {'embed/tokens', 'head/dense', 'head/dense_bias'}


def test_freezing_everything_is_refused():
  with pytest.raises(InputError, match='matches no parameter'):
    adapt.freeze(KEY, PARAMS, [('', False)])


def test_freezing_covers_every_parameter():
  with pytest.raises(InputError, match="no rule of select covers the parameter 'embed/tokens'"):
    adapt.freeze(KEY, PARAMS, [('encoder|head', True)])
