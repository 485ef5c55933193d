"""The law of the house: a floor imports only floors below it, and imports stay light."""

import ast
import graphlib
import os
import pathlib
import subprocess
import sys

import pytest

import jaxtune

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'jaxtune'
FILES = sorted(PACKAGE.rglob('*.py'))

# Within the ground floor, typing lies under tree and options.
FLOORS = (
  {'typing'},
  {'tree', 'options'},
  {'ops', 'optim', 'shard'},
  {'losses', 'models', 'adapt', 'data'},
  {'interop', 'train'},
  {'sweep', 'plan', 'report'},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
ARRAYS = {'jax', 'numpy', 'optax'}
LIGHT = {'typing', 'tree', 'options', 'ops', 'optim', 'losses', 'adapt', 'shard'}


def parts(file: pathlib.Path) -> tuple[str, ...]:
  """`('models', 'stack')`; a package is named by its folder."""
  names = file.relative_to(PACKAGE).with_suffix('').parts
  return names[:-1] if names[-1] == '__init__' else names


MODULES = {'.'.join(('jaxtune', *parts(file))) for file in FILES}


def imports(file: pathlib.Path) -> list[str]:
  """Every dotted name that a file imports, at its top or in a function."""
  found = []
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{file}: imports are absolute'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
      found += [name if name in MODULES else node.module for name in names]
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if node.value.id == 'jaxtune' and node.attr != '__version__':
        found.append(f'jaxtune.{node.attr}')
  return found


def own(file: pathlib.Path) -> set[str]:
  """The packages of jaxtune that a file imports."""
  names = [name.split('.') for name in imports(file)]
  return {name[1] for name in names if name[0] == 'jaxtune' and len(name) > 1}


def test_every_package_has_a_floor():
  assert {parts(file)[0] for file in FILES if parts(file)} <= set(FLOOR)


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_floor_imports_only_floors_below(file):
  if not parts(file):
    assert not own(file)
    return
  package = parts(file)[0]
  wrong = {name for name in own(file) if name != package and FLOOR[name] >= FLOOR[package]}
  assert not wrong, f'{package} is on floor {FLOOR[package]} and imports {wrong}'


def test_third_parties_stay_where_they_belong():
  for file in filter(parts, FILES):
    outside = {name.split('.')[0] for name in imports(file)}
    outside -= {'jaxtune', *sys.stdlib_module_names}
    package = parts(file)[0]
    if package in LIGHT:
      assert outside <= ARRAYS, f'{file} imports {outside - ARRAYS}'
    if package != 'models':
      assert 'flax' not in outside, f'{file} imports flax; only models does'
    assert not outside & {'absl', 'ml_collections'}, f'{file}: configurations end in experiments/'


def test_no_module_imports_itself_through_others():
  graph = {'.'.join(('jaxtune', *parts(file))): set(imports(file)) & MODULES for file in FILES}
  graphlib.TopologicalSorter(graph).prepare()


def run(code: str) -> str:
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  ).stdout


def test_optim_loads_nothing_beyond_jax_and_optax():
  loaded = run(
    'import sys, jax, optax\n'
    'tops = lambda: {name.split(".")[0] for name in sys.modules}\n'
    'before = tops()\n'
    'from jaxtune import optim\n'
    'assert optim.create\n'
    'print(*(tops() - before - set(sys.stdlib_module_names)))'
  )
  assert loaded.split() == ['jaxtune']


def test_the_house_itself_loads_nothing():
  loaded = run('import sys, jaxtune; print(*{name.split(".")[0] for name in sys.modules})').split()
  assert 'jaxtune' in loaded
  assert not {'jax', 'numpy', 'optax', 'flax'} & set(loaded)


def test_packages_load_by_name():
  assert jaxtune.tree.match([('', 1)], {'a': None}) == {'a': None}
  assert {'models', 'optim', '__version__'} <= set(dir(jaxtune))
  with pytest.raises(AttributeError, match='no attribute .nothing.; it has .*optim'):
    jaxtune.nothing  # noqa: B018
