"""Checkpoints come back bit by bit, prove themselves whole, and give way to an older one."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import optim, train
from jaxtune.train import checkpoint
from jaxtune.typing import InputError


@pytest.fixture
def state(tiny):
  state = train.init_state(tiny.trainable, tiny.optimizer(), jax.random.key(5))
  return jax.tree.map(
    lambda x: x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x + 1, state
  )


def at(state, step):
  return state._replace(step=jnp.int32(step))


def data_files(folder: pathlib.Path):
  return sorted(p for p in (folder / 'state').rglob('*') if p.is_file() and p.stat().st_size)


def assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)


def test_round_trip_is_exact(tmp_path, state):
  state = state._replace(trainable={**state.trainable, 'low': jnp.float32(0.1).astype('bfloat16')})
  train.save(train.open_checkpoints(tmp_path), at(state, 3), {'cursor': {'next': 7}}, None)
  shapes = jax.eval_shape(lambda: state)
  restored = train.restore(train.open_checkpoints(tmp_path), shapes)
  assert_same(restored.state, at(state, 3))
  assert restored.cursor == {'cursor': {'next': 7}}
  assert restored.damaged == ()


def test_nothing_to_restore(tmp_path, state):
  manager = train.open_checkpoints(tmp_path)
  assert train.restore(manager, state) is None
  assert train.best(manager) is None


def test_newest_two_and_the_best_are_kept(tmp_path, state):
  manager = train.open_checkpoints(tmp_path)
  for step, score in ((1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, 0.4), (6, None)):
    train.save(manager, at(state, step), {}, score)
  manager = train.open_checkpoints(tmp_path)
  assert sorted(manager.all_steps()) == [2, 5, 6]
  assert train.best(manager) == (2, 0.9)
  assert int(train.restore(manager, state, 2).state.step) == 2


def damage_cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def damage_remove(path):
  path.unlink()


@pytest.mark.parametrize('damage', [damage_cut, damage_flip, damage_remove])
def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, state, damage):
  manager = train.open_checkpoints(tmp_path)
  for step in (1, 2):
    train.save(manager, at(state, step), {'at': step}, None)
  damage(max(data_files(tmp_path / '2'), key=lambda p: p.stat().st_size))
  manager = train.open_checkpoints(tmp_path)
  restored = train.restore(manager, state)
  assert (int(restored.state.step), restored.cursor, restored.damaged) == (1, {'at': 1}, (2,))
  assert 2 not in manager.all_steps()  # so that step 2 can be saved again
  train.save(manager, at(state, 2), {'at': 2}, None)
  assert int(train.restore(train.open_checkpoints(tmp_path), state).state.step) == 2


def test_all_damaged_is_one_clear_line(tmp_path, state):
  manager = train.open_checkpoints(tmp_path)
  train.save(manager, at(state, 1), {}, None)
  damage_cut(tmp_path / '1' / checkpoint.DIGESTS)
  with pytest.raises(InputError, match=r'steps 1 are all damaged.*remove the folder'):
    train.restore(train.open_checkpoints(tmp_path), state)


def test_no_room_is_one_clear_line(tmp_path, state, monkeypatch):
  manager = train.open_checkpoints(tmp_path)

  def full(*args, **kwargs):
    raise ValueError('RESOURCE_EXHAUSTED: No space left on device\nmore')

  monkeypatch.setattr(manager, 'save', full)
  with pytest.raises(InputError, match='No space left on device.; make room'):
    train.save(manager, at(state, 1), {}, None)


def test_a_first_save_that_never_ended_is_forgotten(tmp_path, state):
  manager = train.open_checkpoints(tmp_path)
  train.save(manager, at(state, 1), {}, None)
  (tmp_path / '1' / checkpoint.DIGESTS).unlink()  # killed between the checkpoint and its proof
  manager = train.open_checkpoints(tmp_path)
  assert train.restore(manager, state) is None
  assert list(manager.all_steps()) == []


def test_too_little_room_is_told_before_anything_is_written(tmp_path, state, monkeypatch):
  manager = train.open_checkpoints(tmp_path)
  usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(checkpoint.shutil, 'disk_usage', lambda folder: usage)
  with pytest.raises(InputError, match=r'needs 1\.\d MiB, and 0\.0 MiB are free; make room'):
    train.save(manager, at(state, 1), {}, None)
  assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_rule_is_one_clear_line(tmp_path, tiny):
  def state(name, trainable):
    return train.init_state(trainable, optim.create(name, 1e-2), jax.random.key(0))

  train.save(train.open_checkpoints(tmp_path), state('sgd', tiny.trainable), {}, None)
  with pytest.raises(InputError) as error:
    train.restore(train.open_checkpoints(tmp_path), state('adamw', tiny.trainable))
  line = str(error.value)
  assert line.startswith(f'{tmp_path}/0: the checkpoint comes from another model, method or update')
  assert "'opt/inner/0/count' of int32[] is missing" in line and '\n' not in line
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.trainable)
  with pytest.raises(InputError, match=r'is float32\[.*\] where bfloat16\[.*\] is wanted'):
    train.restore(train.open_checkpoints(tmp_path), state('sgd', low))
  assert train.restore(train.open_checkpoints(tmp_path), state('sgd', tiny.trainable))
