"""Virtual tokens in PEFT's files without PEFT: what the golden adapters do not show."""

import json

import jax
import numpy as np
import pytest

from jaxtune import adapt, interop, models
from jaxtune.typing import InputError

KEY = jax.random.key(0)
METHODS = {name: adapt.METHODS[name] for name in ('prompt', 'p_tuning', 'prefix')}


@pytest.mark.parametrize(
  'name', ['prefix', *(pytest.param(n, marks=pytest.mark.slow) for n in ('prompt', 'p_tuning'))]
)
def test_with_the_head_of_a_classifier(bert, tmp_path, name):
  source = bert()
  body = interop.load(source)
  model, params = models.classifier(jax.random.key(1), *body, 3)
  made = METHODS[name](KEY, params, 3)
  interop.save_peft(tmp_path / 'out', model, made, source)
  base = interop.adapter_head(tmp_path / 'out', *body)
  again = interop.load_peft(tmp_path / 'out', *base)
  jax.tree.map(np.testing.assert_array_equal, adapt.merge(made), adapt.merge(again))
  assert adapt.trainable(again)[0]['head']['dense'] is not None
  with pytest.raises(InputError, match='already has an adapter'):
    interop.load_peft(tmp_path / 'out', base[0], made)
  with pytest.raises(InputError, match='hold a pr.* write the adapter with save_peft'):
    interop.save_hf(tmp_path / 'whole', model, made)


def test_beside_another_adapter(bert, tmp_path):
  model, params = interop.load(bert())
  both = adapt.prompt(KEY, adapt.lora(KEY, params, 2), 3)
  with pytest.raises(InputError, match='a prompt stands beside LORA'):
    interop.save_peft(tmp_path / 'both', model, both)


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'num_transformer_submodules': 2}, 'num_transformer_submodules is 2'),
    ({'num_virtual_tokens': 4}, r'is \[3, 16\] F32, but .* make it \[4, 16\]'),
    ({'num_virtual_tokens': None}, 'num_virtual_tokens'),
    ({'peft_type': 'PREFIX_TUNING'}, r'is \[3, 16\] F32, but .* make it \[3, 64\]'),
    ({'new_field': 1}, 'new_field is 1'),
  ],
)
def test_files_that_cannot_be_read(bert, tmp_path, fields, words):
  model, params = interop.load(bert())
  interop.save_peft(tmp_path / 'out', model, adapt.prompt(KEY, params, 3))
  file = tmp_path / 'out' / 'adapter_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))
  with pytest.raises(InputError, match=words):
    interop.load_peft(tmp_path / 'out', model, params)
