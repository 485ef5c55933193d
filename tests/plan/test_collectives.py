"""What the devices of a step send each other is what theory wants."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxtune import adapt, losses, models, plan, shard, train, tree

CONFIG = models.DecoderConfig(vocabulary=64, width=32, hidden=64, layers=3, heads=4, head_width=8)
BATCH = {'tokens': jax.ShapeDtypeStruct((8, 16), jnp.int32)}


def compiled(method, sizes, devices=None, config=CONFIG, batch=BATCH, dtype=jnp.float32):
  model = models.decoder(config)

  def make(key):
    params = jax.tree.map(lambda x: x.astype(dtype), model.init(key))
    options = {} if method == 'full' else {'rank': 4, 'also': None}
    return adapt.widened(adapt.create(method, key, params, **options))

  params = jax.eval_shape(make, jax.random.key(0))
  grid = shard.mesh(sizes, devices)
  made = train.lower(model, params, losses.causal_lm(model), optax.adamw(1e-3), batch, grid)
  return made.lowered.compile(), params


def sent(method, sizes, **options):
  found, params = compiled(method, sizes, **options)
  return plan.total_bytes(plan.collectives(found)), params


def test_fsdp_gathers_parameters_and_sums_gradients():
  found, params = sent('full', {'fsdp': 8})
  layers = tree.size(params['decoder'])
  assert found.keys() == {'all-gather', 'all-reduce'}
  # Each layer in the forward and in the backward pass, what is around the layers once.
  assert 0 <= found['all-gather'] - layers - tree.size(params) <= 256
  # Of tied embeddings the gradients of the look-up and of the head are summed apart.
  assert 0 <= found['all-reduce'] - tree.size(params) - tree.size(params['embed']) <= 256


@pytest.mark.slow
def test_data_sums_gradients_alone():
  found, params = sent('lora', {'data': 8})
  trained = tree.size(adapt.trainable(params)[0])
  assert found.keys() == {'all-reduce'}
  assert trained <= found['all-reduce'] <= trained + 256


TEXT = """
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one = f32[8]{0} all-reduce(%x), channel_id=3, replica_groups={{0,1}}, to_apply=%add
}

%late (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one = f32[2]{0} all-reduce(%x), channel_id=3, replica_groups={{0,1}}, to_apply=%add
}

%c (state: (s32[], f32[8])) -> pred[] {
  %most = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%number, %most), direction=LT
}

%fused (x: bf16[4]) -> bf16[8] {
  %two = bf16[8]{0} all-gather(%x), channel_id=5, dimensions={0}
}

%again (x: bf16[4]) -> bf16[8] {
  %two = bf16[8]{0} all-gather(%x), channel_id=5, dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%t), condition=%c, body=%body, {"known_trip_count":{"n":"4"}}
  %late = (s32[], f32[8]) while(%t), condition=%c, body=%late
  %a = bf16[8] fusion(%x), kind=kLoop, calls=%fused
  %b = bf16[8] fusion(%x), kind=kLoop, calls=%again
  %three = (f32[2], f32[16]) all-gather-start(%x), channel_id=6
  %four = f32[2]{0} reduce-scatter(%x), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}
"""


def test_operations_of_a_module():
  assert sorted(plan.collectives(TEXT)) == [
    plan.Collective('all-gather', 16, 1),
    plan.Collective('all-gather', 64, 1),
    plan.Collective('all-reduce', 8, 3),
    plan.Collective('all-reduce', 32, 4),
    plan.Collective('reduce-scatter', 32, 1),
  ]
  assert plan.total_bytes(plan.collectives(TEXT)) == {
    'all-reduce': 152,
    'all-gather': 80,
    'reduce-scatter': 32,
  }


TPU = """
import json
import jax.numpy as jnp, jax
from jax.experimental import topologies
from jaxtune import adapt, models, plan, tree
from tests.plan.test_collectives import compiled
devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
config = models.DecoderConfig(vocabulary=2048, width=512, hidden=1024, layers=3, heads=4)
batch = {'tokens': jax.ShapeDtypeStruct((8, 256), jnp.int32)}
found, params = compiled('full', {'fsdp': 4}, devices, config, batch)
layers = tree.size(params['decoder'])
print(json.dumps({
  'sent': plan.total_bytes(plan.collectives(found)),
  # Its products take matrices as bfloat16, and so it gathers them.
  'gathered': 2 * layers / 2 + tree.size(params) - layers,
  'trained': tree.size(adapt.trainable(params)[0]),
}))
"""


@pytest.mark.peers
def test_fsdp_of_a_tpu_that_is_not_here():
  """Compiled for four chips v5e: gathers and sums, nothing sent twice, no warning."""
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
  assert 'rematerialization' not in done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['sent'].keys() <= {'all-gather', 'all-reduce', 'reduce-scatter'}
  summed = found['sent']['all-reduce'] + found['sent'].get('reduce-scatter', 0)
  assert summed == pytest.approx(found['trained'], rel=0.05)
  assert found['sent']['all-gather'] == pytest.approx(found['gathered'], rel=0.05)
