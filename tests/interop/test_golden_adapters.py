"""PEFT's own adapters compute here what they computed there, and are saved as they were read.

scripts/golden_adapters.py writes them; with PEFT at hand test_peers_peft*.py go further.
"""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxtune import interop

FOLDER = pathlib.Path(__file__).parent / 'golden' / 'adapters'
NAMES = sorted(file.parent.name for file in FOLDER.glob('*/adapter_config.json'))
# Of each format the default suite reads one file.
VARIANTS = {
  *('adalora_settled', 'bias_lora_only', 'embedding_alone', 'embedding_tied', 'lokr_both'),
  *('lora_all_linear', 'lora_tokens', 'rslora'),
}


@functools.cache
def base(name):
  return interop.load(FOLDER / name)


def load(folder, name):
  model, params = interop.adapter_head(folder, *base(name))
  return model, interop.load_peft(folder, model, params)


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=pytest.mark.slow if n in VARIANTS else ()) for n in NAMES]
)
def test_outputs_are_those_of_peft_and_survive_a_round_trip(name, tmp_path):
  config = json.loads((FOLDER / name / 'adapter_config.json').read_text())
  source = config['base_model_name_or_path']
  model, params = load(FOLDER / name, source)
  want = np.load(FOLDER / name / 'expected.npz')
  with jax.disable_jit():  # op by op: models of one shape share what is compiled
    got = np.asarray(model.apply(params, want['tokens'], want['mask']))
  real = want['mask'] if got.ndim == 3 else slice(None)
  moved = np.abs(want['outputs'] - want['base'])[real].max()
  assert moved >= 0.1
  assert np.abs(got - want['outputs'])[real].max() < 1e-3 * moved

  interop.save_peft(tmp_path / 'again', model, params, FOLDER / source)
  _, again = load(tmp_path / 'again', source)
  jax.tree.map(np.testing.assert_array_equal, dict(params), dict(again))
  assert set(again.rules) == set(params.rules)
