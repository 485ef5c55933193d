"""Reading a safetensors model takes at most 1.3 times its size."""

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


def write_llama(folder: pathlib.Path, vocabulary, width, hidden, layers, dtype=np.float32) -> int:
  """A Llama of random weights as one file; returns its bytes."""
  rng = np.random.default_rng(0)
  shapes = {'model.embed_tokens.weight': (vocabulary, width), 'model.norm.weight': (width,)}
  for i in range(layers):
    p = f'model.layers.{i}.'
    shapes |= {f'{p}self_attn.{n}_proj.weight': (width, width) for n in 'qkvo'}
    shapes |= {f'{p}mlp.{n}_proj.weight': (hidden, width) for n in ('gate', 'up')}
    shapes |= {f'{p}mlp.down_proj.weight': (width, hidden)}
    shapes |= {f'{p}{n}_layernorm.weight': (width,) for n in ('input', 'post_attention')}
  tensors = {n: rng.standard_normal(s, np.float32).astype(dtype) for n, s in shapes.items()}
  folder.mkdir()
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
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
  return (folder / 'model.safetensors').stat().st_size


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
  run = subprocess.run(
    [sys.executable, '-c', _PROGRAM, tmp_path / 'tiny', tmp_path / 'large'],
    capture_output=True,
    text=True,
    env={**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'},
  )
  assert run.returncode == 0, run.stderr
  measured = json.loads(run.stdout.splitlines()[-1])
  peak = measured['after'] - measured['before']
  print(
    f'loading {size / 1e6:.0f} MB of safetensors: peak {peak / 1e6:.0f} MB, '
    f'{peak / size:.3f} times (process: {measured["after"] / 1e6:.0f} MB with JAX)'
  )
  assert measured['held'] > 0.999 * (size - 10000)
  assert peak <= 1.3 * size
