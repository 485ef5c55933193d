"""Which kernel attention takes where; compiling for devices that are not here is marked."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import ops, plan
from jaxtune.ops import attention_kernels

LONG, SHORT = 1024, 128


def choose(monkeypatch, platform, length=LONG, width=64, dtype=jnp.bfloat16, cap=0.0, **change):
  monkeypatch.setattr(attention_kernels, '_platform', lambda: platform)
  monkeypatch.setattr(attention_kernels, '_cudnn_takes', lambda q, k, masked: True)
  seen = ops.visible(None, np.ones((2, length), np.int32), True, length)
  seen = dataclasses.replace(seen, **change)
  q = jax.ShapeDtypeStruct((2, length, 4, width), dtype)
  return ops.attention_kernel(q, q, seen, True, cap)


def test_the_backend_and_the_arguments_decide(monkeypatch):
  assert choose(monkeypatch, 'cpu') == 'blocks'
  assert choose(monkeypatch, 'cpu', SHORT) == 'scores'
  assert choose(monkeypatch, 'tpu') == choose(monkeypatch, 'tpu', SHORT) == 'splash'
  assert choose(monkeypatch, 'tpu', cap=50.0, behind=np.int32(9)) == 'splash'
  assert choose(monkeypatch, 'tpu', 1000) == 'blocks'  # no multiple of 128
  assert choose(monkeypatch, 'tpu', width=48) == 'blocks'
  assert choose(monkeypatch, 'tpu', behind=jnp.int32(9)) == 'blocks'  # a window for some layers
  assert choose(monkeypatch, 'tpu', shared=True) == 'blocks'  # tokens that all documents see
  assert choose(monkeypatch, 'gpu') == choose(monkeypatch, 'gpu', shared=True) == 'cudnn'
  assert choose(monkeypatch, 'gpu', dtype=jnp.float32) == 'blocks'
  assert choose(monkeypatch, 'gpu', SHORT, dtype=jnp.float32) == 'scores'
  assert choose(monkeypatch, 'gpu', cap=50.0) == 'blocks'
  assert choose(monkeypatch, 'gpu', 8192) == 'blocks'  # the mask alone would take gigabytes


def test_cudnn_that_is_not_here_is_not_taken(monkeypatch):
  monkeypatch.setattr(attention_kernels, '_platform', lambda: 'gpu')
  q = jax.ShapeDtypeStruct((2, LONG, 4, 64), jnp.bfloat16)
  assert ops.attention_kernel(q, q, None, True, 0.0) == 'blocks'


def test_splash_is_the_same_attention(monkeypatch):
  """Interpreted, on packed rows that end in padding, with a window and a cap."""
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(2, 256, n, 64)), jnp.float32) for n in (4, 2, 2))
  segments = np.repeat(np.int32([[1, 2, 0]]), [100, 120, 36], axis=1).repeat(2, axis=0)
  seen = ops.visible(segments > 0, segments, True, 256, window=70)
  real = (segments > 0)[:, :, None, None]

  def total(q, k, v):
    y = ops.attention(q, k, v, seen, causal=True, cap=3.0)
    return jnp.sum(jnp.where(real, y, 0.0) ** 2)

  run = jax.value_and_grad(total, argnums=(0, 1, 2))
  want = jax.jit(run)(q, k, v)
  from jax.experimental.pallas.ops.tpu import splash_attention as lib

  made = lib.make_splash_mha
  monkeypatch.setattr(lib, 'make_splash_mha', lambda *a, **k: made(*a, interpret=True, **k))
  monkeypatch.setattr(attention_kernels, '_platform', lambda: 'tpu')
  compiled = jax.jit(lambda *x: run(*x)).lower(q, k, v).compile()
  assert plan.attention_kernels(compiled) == ('splash',)
  for got, one in zip(jax.tree.leaves(compiled(q, k, v)), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(got, one, rtol=1e-4, atol=1e-4)


TPU = """
import json
import jax, jax.numpy as jnp, optax
from jax.experimental import topologies
from jaxtune import adapt, losses, models, plan, shard, train
devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
model = models.decoder(models.DecoderConfig(
  vocabulary=512, width=256, hidden=256, layers=2, heads=4, kv_heads=2, head_width=64))
key = jax.random.key(0)
params = jax.eval_shape(lambda: adapt.create('lora', key, model.init(key)))
batch = {name: jax.ShapeDtypeStruct((4, 256), kind) for name, kind in
  {'tokens': jnp.int32, 'mask': bool, 'segments': jnp.int32, 'positions': jnp.int32}.items()}
found = {}
for name, sizes, count in (('one', {}, 1), ('four', {'fsdp': 2, 'tensor': 2}, 4)):
  grid = shard.mesh(sizes, devices=list(devices)[:count])
  step = train.lower(model, params, losses.causal_lm(model), optax.sgd(1e-3), batch, grid)
  compiled = step.lowered.compile()
  found[name] = [plan.attention_kernels(compiled), compiled.as_text().count('tpu_custom_call')]
print(json.dumps(found))
"""


@pytest.mark.peers
def test_a_step_for_a_tpu_that_is_not_here_has_its_kernel():
  """Three kernels a step, of the forward pass and of the gradients of queries and of keys."""
  pytest.importorskip('libtpu')
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  environment |= {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
  }
  done = subprocess.run(
    [sys.executable, '-c', TPU], env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found == {'one': [['splash'], 3], 'four': [['splash'], 3]}
