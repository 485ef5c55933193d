"""A run does not go on where what it was made of has changed: one line says what."""

import shutil

import numpy as np
import pytest
import safetensors.numpy

from jaxtune.typing import InputError


@pytest.fixture(scope='module')
def begun(configure, launch, files, tmp_path_factory):
  """A run, its base and its data in one folder; as if it was killed before its last file."""
  folder = tmp_path_factory.mktemp('begun')
  shutil.copytree(files / 'encoder', folder / 'encoder')
  shutil.copy(files / 'films.csv', folder)
  values = {'model': str(folder / 'encoder'), 'data.path': str(folder / 'films.csv')}
  values |= {'train.steps': 1, 'train.batch_size': 40}
  assert launch(configure(values=values), folder / 'run') == 0
  (folder / 'run' / 'result.json').unlink()
  return folder, configure(values=values)


def change_base(folder):
  path = folder / 'encoder' / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  name = next(name for name in tensors if 'query.weight' in name)
  tensors[name].view(np.uint8)[0, 0] ^= 1
  safetensors.numpy.save_file(tensors, path, {'format': 'pt'})


def change_data(folder):
  path = folder / 'films.csv'
  path.write_text(path.read_text().replace('really', 'truly'))


@pytest.mark.parametrize(
  'change, match',
  [
    (change_base, r'checkpoints/1: model holds something else than when .* bring back what it was'),
    (change_data, r'checkpoints/1: data.valid holds something else than when the checkpoint'),
  ],
)
def test_a_change_is_refused(begun, launch, tmp_path, change, match):
  folder, config = begun
  before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
  change(folder)
  with pytest.raises(InputError, match=match) as caught:
    launch(config, folder / 'run')
  assert '\n' not in str(caught.value)
  for path in (path for path in before if folder / 'run' not in path.parents):
    path.write_bytes(before[path])
  after = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
  assert after == before
