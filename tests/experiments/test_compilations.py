"""The persistent cache of what JAX compiles, and how often a run compiles."""

import collections
import os

import jax
import pytest

from experiments import compilations


@pytest.fixture
def settings(monkeypatch, tmp_path):
  """JAX's settings as a user has them, and the user's cache in `tmp_path`."""
  names = ('jax_enable_compilation_cache', 'jax_compilation_cache_dir', *compilations.EVERYTHING)
  own = {name: getattr(jax.config, name) for name in names}
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  for name in compilations.EVERYTHING:
    monkeypatch.delenv(name.upper(), raising=False)
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  for name, value in own.items():
    jax.config.update(name, value)


@pytest.mark.usefixtures('settings')
def test_everything_is_kept_in_the_users_cache(tmp_path):
  compilations.keep()
  folder = tmp_path / 'jaxtune' / 'compiled'
  assert jax.config.jax_compilation_cache_dir == str(folder) and folder.is_dir()
  assert {name: getattr(jax.config, name) for name in compilations.EVERYTHING} == (
    compilations.EVERYTHING
  )


@pytest.mark.usefixtures('settings')
def test_jaxs_own_settings_count(tmp_path, monkeypatch):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'mine'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 5)
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '5')
  compilations.keep()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'mine')
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 5
  assert not (tmp_path / 'jaxtune').exists()


@pytest.mark.usefixtures('settings')
def test_switched_off_nothing_is_kept(tmp_path):
  jax.config.update('jax_enable_compilation_cache', False)
  compilations.keep()
  assert jax.config.jax_compilation_cache_dir is None and not [*tmp_path.iterdir()]


@pytest.mark.usefixtures('settings')
def test_where_nothing_can_be_written_nothing_is_kept(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  compilations.keep()
  assert jax.config.jax_compilation_cache_dir is None


def test_what_is_never_read_or_broken_is_forgotten(tmp_path):
  for name in ('old-cache', 'new-cache', 'empty-cache', 'other'):
    (tmp_path / name).write_bytes(b'' if name == 'empty-cache' else b'x')
  for name in ('old-cache', 'other'):
    os.utime(tmp_path / name, (1, 1))
  compilations.forget(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {'new-cache', 'other'}


def test_a_run_compiles_each_program_once(configure, launch, tmp_path):
  compiled = collections.Counter()

  def count(event, seconds, **about):
    if event.endswith('backend_compile_duration'):
      compiled[about.get('fun_name')] += 1

  jax.monitoring.register_event_duration_secs_listener(count)
  assert launch(configure(), tmp_path / 'run') == 0  # with three evaluations
  jax.monitoring.clear_event_listeners()
  assert compiled['jit(step)'] == compiled['jit(evaluation)'] == 1


@pytest.mark.slow
def test_a_second_start_compiles_nothing(shell, config_file, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  kept = tmp_path / 'jaxtune' / 'compiled'
  found = []
  for name in ('first', 'second'):
    run = shell('finetune', f'--config={config_file()}', f'--workdir={tmp_path / name}', cache=None)
    assert run.code == 0 and not run.err, run.err
    found.append({path.name: path.stat().st_mtime for path in kept.iterdir()})
  assert any(name.startswith('jit_step') for name in found[0])
  assert found[0] == found[1]
