"""Checkpoints come back bit by bit, prove themselves whole, and give way to an older one."""

import itertools
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def save(checkpoints, *args, **options):
  train.save(checkpoints, *args, **options)
  train.wait(checkpoints)


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
  save(train.open_checkpoints(tmp_path), at(state, 3), {'cursor': {'next': 7}}, None)
  shapes = jax.eval_shape(lambda: state)
  restored = train.restore(train.open_checkpoints(tmp_path), shapes)
  assert_same(restored.state, at(state, 3))
  assert restored.cursor == {'cursor': {'next': 7}}
  assert restored.damaged == ()


def test_nothing_to_restore(tmp_path, state):
  checkpoints = train.open_checkpoints(tmp_path)
  assert train.restore(checkpoints, state) is None
  assert train.best(checkpoints) is None


def test_newest_two_and_the_best_are_kept(tmp_path, state):
  checkpoints = train.open_checkpoints(tmp_path)
  for step, score in ((1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, 0.4), (6, None)):
    save(checkpoints, at(state, step), {}, score)
  checkpoints = train.open_checkpoints(tmp_path)
  assert checkpoints.steps == [2, 5, 6]
  assert train.best(checkpoints) == (2, 0.9)
  assert int(train.restore(checkpoints, state, [2]).state.step) == 2


def damage_cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def damage_remove(path):
  path.unlink()


def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, state):
  checkpoints = train.open_checkpoints(tmp_path)
  for step in (1, 2):
    save(checkpoints, at(state, step), {'at': step}, None)
  damage_flip(max(data_files(tmp_path / '2'), key=lambda p: p.stat().st_size))
  checkpoints = train.open_checkpoints(tmp_path)
  restored = train.restore(checkpoints, state)
  assert (int(restored.state.step), restored.cursor, restored.damaged) == (1, {'at': 1}, (2,))
  assert 2 not in checkpoints.steps  # so that step 2 can be saved again
  save(checkpoints, at(state, 2), {'at': 2}, None)
  assert int(train.restore(train.open_checkpoints(tmp_path), state).state.step) == 2


def test_all_damaged_is_one_clear_line(tmp_path, state):
  checkpoints = train.open_checkpoints(tmp_path)
  save(checkpoints, at(state, 1), {}, None)
  damage_cut(tmp_path / '1' / checkpoint.DIGESTS)
  with pytest.raises(InputError, match=r'steps 1 are all damaged.*remove the folder'):
    train.restore(train.open_checkpoints(tmp_path), state)


@pytest.mark.parametrize('when', ['begins', 'goes on'])
def test_no_room_is_one_clear_line(tmp_path, state, monkeypatch, when):
  checkpoints = train.open_checkpoints(tmp_path)
  save(checkpoints, at(state, 1), {}, None)
  with monkeypatch.context() as patch:

    def full(*args, **kwargs):
      raise ValueError('RESOURCE_EXHAUSTED: No space left on device\nmore')

    patch.setattr(
      *((checkpoints.manager, 'save') if when == 'begins' else (checkpoint, '_digests')), full
    )
    with pytest.raises(
      InputError, match='/2: the checkpoint cannot.*No space left on device.; make room'
    ):
      save(checkpoints, at(state, 2), {}, None)
  checkpoints = train.open_checkpoints(tmp_path)
  assert checkpoints.steps == [1]
  assert int(train.restore(checkpoints, state).state.step) == 1


def test_what_is_written_is_not_what_later_steps_make_of_it(tmp_path):
  # The CPU's arrays are written from where they lie, which a donated step would write over.
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1 if x.ndim else x, s), donate_argnums=0)
  rule = optax.sgd(0.1, momentum=0.9)
  state = train.init_state({'w': jnp.zeros((1 << 22,))}, rule, jax.random.key(0))
  checkpoints = train.open_checkpoints(tmp_path)
  like = checkpoint.shapes(state)
  train.save(checkpoints, state, {}, None)
  for _ in range(20):
    state = step(state)
  assert float(state.trainable['w'][-1]) == 20
  found = train.restore(checkpoints, like).state
  assert not np.any(found.trainable['w']) and not np.any(found.opt[0].trace['w'])


def test_too_little_room_is_told_before_anything_is_written(tmp_path, state, monkeypatch):
  checkpoints = train.open_checkpoints(tmp_path)
  usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(checkpoint.shutil, 'disk_usage', lambda folder: usage)
  with pytest.raises(InputError, match=r'needs 1\.\d MiB, and 0\.0 MiB are free; make room'):
    save(checkpoints, at(state, 1), {}, None)
  assert checkpoints.steps == [] and list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_rule_is_one_clear_line(tmp_path, tiny):
  def state(name, trainable):
    return train.init_state(trainable, optim.create(name, 1e-2), jax.random.key(0))

  save(train.open_checkpoints(tmp_path), state('sgd', tiny.trainable), {}, None)
  with pytest.raises(InputError) as error:
    train.restore(train.open_checkpoints(tmp_path), state('adamw', tiny.trainable))
  line = str(error.value)
  assert line.startswith(f'{tmp_path}/0: the checkpoint comes from another model, method or update')
  assert "'opt/inner/0/count' of int32[] is missing" in line and '\n' not in line
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.trainable)
  with pytest.raises(InputError, match=r'is float32\[.*\] where bfloat16\[.*\] is wanted'):
    train.restore(train.open_checkpoints(tmp_path), state('sgd', low))
  assert train.restore(train.open_checkpoints(tmp_path), state('sgd', tiny.trainable))


def test_any_damaged_file_gives_way_to_the_one_before(tmp_path):
  state = train.init_state({'w': jnp.ones(3)}, optax.sgd(0.1), jax.random.key(0))
  checkpoints = train.open_checkpoints(tmp_path / 'whole')
  for step in (1, 2):
    save(checkpoints, at(state, step), {'at': step}, float(step))
  files = [path for path in (tmp_path / 'whole' / '2').rglob('*') if path.is_file()]
  damages = itertools.cycle((damage_flip, damage_remove, damage_cut))
  for damage, file in zip(damages, files, strict=False):
    shutil.rmtree(tmp_path / 'run', ignore_errors=True)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'run')
    damage(tmp_path / 'run' / file.relative_to(tmp_path / 'whole'))
    found = train.restore(train.open_checkpoints(tmp_path / 'run'), state)
    # Those that Orbax writes last are not proved, and not needed.
    step = 2 if file.parent.name == '2' and file.name != checkpoint.DIGESTS else 1
    assert (int(found.state.step), found.cursor['at']) == (step, step), (damage, file)


def test_what_a_run_is_made_of_must_not_change(tmp_path, state):
  folder = tmp_path / 'run'
  save(train.open_checkpoints(folder, made_of={'model': 'a1', 'rows': 'b2'}), state, {}, None)
  for made_of in ({'model': 'a1', 'rows': 'b2'}, {'model': 'a1', 'more': 'c3'}, {}):
    assert train.restore(train.open_checkpoints(folder, made_of=made_of), state)
  line = r'/1: rows holds something else than .* was made \(digest b2 then, c3 now\)'
  with pytest.raises(InputError, match=line):
    train.restore(train.open_checkpoints(folder, made_of={'model': 'a1', 'rows': 'c3'}), state)
