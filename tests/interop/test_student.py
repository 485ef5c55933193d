"""A student of a real model is an ordinary folder, with the tokenizer of its teacher."""

import json

import jax
import numpy as np

from jaxtune import interop, models


def test_half_of_minilm_round_trip(minilm, tmp_path):
  model, params = models.student(*interop.load(minilm), 3)
  interop.save_hf(tmp_path / 'out', model, params)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['num_hidden_layers'] == 3 and config['architectures'] == ['BertModel']
  again, read = interop.load(tmp_path / 'out')
  assert again.config == model.config
  jax.tree.map(np.testing.assert_array_equal, params, read)
  assert (tmp_path / 'out' / 'tokenizer.json').exists()
