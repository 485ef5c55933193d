"""LoRA whose start changed the base, in files for the base as it was; dropout in files."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxtune import adapt, interop, tree
from jaxtune.typing import InputError

KEY = jax.random.key(2)
SELECT = (('attn/q$', {'rank': 3}), ('(attn/o|mlp/up|embed/tokens)$', True), ('', False))


def moved(params, size=0.1):
  """Every A and B as training might have left it."""

  def move(path, leaf):
    if not isinstance(leaf, adapt.LoRA):
      return leaf
    one, two = jax.random.split(jax.random.key(len(path)))
    return dataclasses.replace(
      leaf,
      a=leaf.a + size * jax.random.normal(one, leaf.a.shape),
      b=leaf.b + size * jax.random.normal(two, leaf.b.shape),
    )

  return tree.map_weights(move, params)


@pytest.mark.parametrize('start', ['olora', pytest.param('pissa', marks=pytest.mark.slow)])
def test_the_file_is_for_the_base_as_it_was(llama, tmp_path, start):
  source = llama()
  model, base = interop.load(source)
  tuned = moved(adapt.lora(KEY, base, 2, rslora=True, start=start, select=SELECT))
  interop.save_peft(tmp_path / 'a', model, tuned, source)
  config = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
  assert config['r'] == 4 and set(config['rank_pattern'].values()) == {6}
  assert config['init_lora_weights'] is True
  again = interop.load_peft(tmp_path / 'a', model, base)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), adapt.merge(tuned), adapt.merge(again)
  )


@pytest.mark.slow
def test_what_a_quantized_base_misses_is_not_in_the_file(llama, tmp_path):
  source = llama()
  model, base = interop.load(source)
  tuned = moved(adapt.lora(KEY, base, 2, start='loftq', select='attn/q$'))
  interop.save_peft(tmp_path / 'a', model, tuned, source)
  again = interop.load_peft(tmp_path / 'a', model, base)
  q, full, before = (p['decoder']['0-2']['attn']['q'] for p in (tuned, again, base))
  missed = before - adapt.merge(dataclasses.replace(q, a=q.base.a0, b=q.base.b0))
  np.testing.assert_allclose(adapt.merge(full) - adapt.merge(q), missed, atol=1e-5)


def test_a_start_alone_is_nothing_to_export(llama, tmp_path):
  source = llama()
  model, base = interop.load(source)
  fresh = adapt.lora(KEY, base, 2, start='olora', select='attn/q$')
  with pytest.raises(InputError, match='the adapter changes nothing; train'):
    interop.save_peft(tmp_path / 'a', model, fresh, source)


def test_dropout_goes_along(llama, tmp_path):
  source = llama()
  model, base = interop.load(source)
  tuned = moved(adapt.lora(KEY, base, 2, dropout=0.1, select='attn/q$'))
  interop.save_peft(tmp_path / 'a', model, tuned, source)
  config = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
  assert config['lora_dropout'] == 0.1
  again = interop.load_peft(tmp_path / 'a', model, base)
  assert isinstance(again['decoder']['0-2']['attn']['q'], adapt.DroppedLoRA)
  jax.tree.map(np.testing.assert_array_equal, dict(tuned), dict(again))
  assert tree.paths(adapt.trainable(again)[0]) == tree.paths(adapt.trainable(tuned)[0])
