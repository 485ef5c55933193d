"""Reading a model takes at most 1.3 times its size, and spread over devices a part at a time."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

_PROGRAM = """
import json, re, sys
import jax
from jaxtune import interop

def peak():  # of this program alone: ru_maxrss begins with the peak of who started it
  return 1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])

jax.block_until_ready(jax.numpy.zeros(8))
warm = interop.load(sys.argv[1])  # a tiny model of the family: code and buffers are there
before = peak()
model, params = interop.load(sys.argv[2])
after = peak()
held = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({'before': before, 'after': after, 'held': held}))
"""


# Samples the anonymous memory while the parts of each device are read.
_SPREAD = """
import json, re, sys, threading, time
import jax
from jaxtune import interop, shard

mesh = shard.mesh({'fsdp': -1})

def anonymous():
  return 1024 * int(re.search(r'RssAnon:\\s+(\\d+) kB', open('/proc/self/status').read())[1])

def spread(folder):
  return interop.load(
    folder, shardings=lambda model, shapes: shard.param_shardings(mesh, shapes, model.axes(shapes))
  )

warm = spread(sys.argv[1])
before, highest, done = anonymous(), [0], []

def watch():
  while not done:
    highest[0] = max(highest[0], anonymous())
    time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
model, params = spread(sys.argv[2])
done.append(True)
watcher.join()
parts = [part.data.nbytes for x in jax.tree.leaves(params) for part in x.addressable_shards]
print(json.dumps({
  'peak': highest[0] - before, 'held': sum(parts), 'largest': max(parts), 'parts': len(parts),
}))
"""


def write_llama(
  folder: pathlib.Path, vocabulary, width, hidden, layers, dtype=np.float32, shards=1
) -> int:
  """A Llama of random weights; returns its bytes."""
  rng = np.random.default_rng(0)
  shapes = {'model.embed_tokens.weight': (vocabulary, width), 'model.norm.weight': (width,)}
  for i in range(layers):
    p = f'model.layers.{i}.'
    shapes |= {f'{p}self_attn.{n}_proj.weight': (width, width) for n in 'qkvo'}
    shapes |= {f'{p}mlp.{n}_proj.weight': (hidden, width) for n in ('gate', 'up')}
    shapes |= {f'{p}mlp.down_proj.weight': (width, hidden)}
    shapes |= {f'{p}{n}_layernorm.weight': (width,) for n in ('input', 'post_attention')}
  folder.mkdir()
  where = {}
  for number in range(shards):
    names = list(shapes)[number::shards]
    tensors = {n: rng.standard_normal(shapes[n], np.float32).astype(dtype) for n in names}
    file = 'model.safetensors'
    if shards > 1:
      file = f'model-{number + 1:05}-of-{shards:05}.safetensors'
    safetensors.numpy.save_file(tensors, folder / file, metadata={'format': 'pt'})
    where |= dict.fromkeys(names, file)
  if shards > 1:
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
  config = {
    'model_type': 'llama',
    'vocab_size': vocabulary,
    'hidden_size': width,
    'intermediate_size': hidden,
    'num_hidden_layers': layers,
    'num_attention_heads': 8,
    'tie_word_embeddings': True,
  }
  (folder / 'config.json').write_text(json.dumps(config))
  return sum(file.stat().st_size for file in folder.glob('*.safetensors'))


def run(program: str, *folders: pathlib.Path, flags: str = '') -> dict[str, int]:
  done = subprocess.run(
    [sys.executable, '-c', program, *folders],
    capture_output=True,
    text=True,
    env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize(
  'sizes', [(32000, 1024, 2816, 6), (100000, 1024, 256, 1)], ids=['layers', 'embeddings']
)
def test_peak_of_loading(tmp_path, sizes):
  """Contract: the peak of the resident set grows by at most 1.3 times the file."""
  write_llama(tmp_path / 'tiny', 16, 16, 16, 1)
  size = write_llama(tmp_path / 'large', *sizes)
  assert size >= 400e6
  measured = run(_PROGRAM, tmp_path / 'tiny', tmp_path / 'large')
  peak = measured['after'] - measured['before']
  print(
    f'loading {size / 1e6:.0f} MB of safetensors: peak {peak / 1e6:.0f} MB, '
    f'{peak / size:.3f} times (process: {measured["after"] / 1e6:.0f} MB with JAX)'
  )
  assert measured['held'] > 0.999 * (size - 10000)
  assert peak <= 1.3 * size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_peak_of_loading_onto_a_mesh(tmp_path):
  """Contract: beside the shards at most 1.2 times the largest of them, of 8 files on 8 devices."""
  write_llama(tmp_path / 'tiny', 16, 16, 16, 1)
  size = write_llama(tmp_path / 'large', 32000, 1024, 5504, 12, shards=8)
  assert size >= 1e9
  flags = '--xla_force_host_platform_device_count=8'
  measured = run(_SPREAD, tmp_path / 'tiny', tmp_path / 'large', flags=flags)
  extra = measured['peak'] - measured['held']
  print(
    f'loading {size / 1e6:.0f} MB in 8 shards onto 8 devices: {extra / 1e6:.1f} MB beside '
    f'{measured["held"] / 1e6:.0f} MB in {measured["parts"]} parts, '
    f'{extra / measured["largest"]:.2f} of the largest ({measured["largest"] / 1e6:.0f} MB)'
  )
  assert measured['parts'] == 11 * 8 and measured['held'] > 0.999 * size
  assert extra <= 1.2 * measured['largest']
