"""Every family computes what transformers computed when the files of `golden` were written.

scripts/golden_families.py writes them; with torch at hand tests/interop/test_peers_*.py go further.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxtune import interop
from jaxtune.interop.families import FAMILIES

GOLDEN = pathlib.Path(__file__).parent / 'golden'
NAMES = sorted(file.stem for file in GOLDEN.glob('*.safetensors'))


def given_and_wanted(name):
  """What `apply` takes, the first of it without a name, and the outputs."""
  given = safetensors.numpy.load_file(GOLDEN / f'{name}.safetensors')
  return given, given.pop('outputs')


SLOW = (
  'gemma2',
  'mixtral',
  'clip',
  'modernbert',
  'roberta',
  'smollm3',
)  # beside others much like them


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES]
)
def test_outputs_are_those_of_transformers(name):
  model, params = interop.load(GOLDEN / name)
  given, want = given_and_wanted(name)
  first, *_ = (given.pop(key) for key in ('images', 'tokens') if key in given)
  with jax.disable_jit():  # op by op: models of one shape share what is compiled
    got = np.asarray(model.apply(params, first, **given))
  real = given.get('target_mask', given.get('mask')) if want.ndim == 3 else None
  if real is not None:
    want, got = want[real], got[real]
  assert np.abs(got - want).max() < 1e-4 * want.std()


@pytest.mark.parametrize('name', NAMES)
def test_saved_as_it_was(name, tmp_path):
  """The same tensors by the same names, and a configuration that says the same."""
  model, params = interop.load(GOLDEN / name)
  for folder, source in (('known', model.source), ('alone', None)):
    interop.save_hf(tmp_path / folder, dataclasses.replace(model, source=source), params)
    want, got = (
      safetensors.numpy.load_file(where / 'model.safetensors')
      for where in (GOLDEN / name, tmp_path / folder)
    )
    assert want.keys() == got.keys()
    for tensor, values in want.items():
      np.testing.assert_array_equal(values, got[tensor])
    family = FAMILIES[model.config.model_type]
    raw = json.loads((tmp_path / folder / 'config.json').read_text())
    assert (
      raw['architectures']
      == json.loads((GOLDEN / name / 'config.json').read_text())['architectures']
    )
    assert family.read_config(raw, 'config.json') == family.read_config(
      family.write_config(model.config) | {'model_type': model.config.model_type}, 'config.json'
    )


def test_files_are_small():
  assert sum(file.stat().st_size for file in GOLDEN.rglob('*') if file.is_file()) < 1.6e6
