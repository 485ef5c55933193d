import json
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np

from jaxtune.report import environment, peak_rss, versions


def test_versions():
  found = versions()
  assert found['python'] == platform.python_version()
  assert found['jax'] == jax.__version__
  assert found['devices'] == '8 x cpu'
  assert json.loads(json.dumps(found)) == found
  assert all(isinstance(value, str) and value for value in found.values())


def test_an_installed_copy_does_not_take_the_commit_of_the_folder_around_it(tmp_path, monkeypatch):
  git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b.c']
  folder = tmp_path / 'jaxtune' / 'report'
  folder.mkdir(parents=True)
  (folder / 'environment.py').write_text('')
  monkeypatch.setattr(environment, '__file__', str(folder / 'environment.py'))
  assert environment._commit() is None

  def run(*arguments):
    subprocess.run([*git, *arguments], cwd=tmp_path, check=True, capture_output=True)

  run('init')
  run('add', '.')
  run('commit', '-m', 'x')
  commit = environment._commit()
  assert commit and len(commit) == 40
  (folder / 'environment.py').write_text('changed')
  assert environment._commit() == f'{commit}-dirty'
  nested = tmp_path / 'venv' / 'jaxtune' / 'report'
  nested.mkdir(parents=True)
  monkeypatch.setattr(environment, '__file__', str(nested / 'environment.py'))
  assert environment._commit() is None


def test_peak_rss_is_bytes_of_this_process_and_not_of_its_parent():
  held = np.ones(60_000_000 // 8)
  assert peak_rss() > held.nbytes
  code = 'from jaxtune.report.environment import peak_rss; print(peak_rss())'
  root = pathlib.Path(__file__).parents[2]
  command = [sys.executable, '-c', code]
  child = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
  assert 10_000_000 < int(child.stdout) < 2 * peak_rss()
