"""What a step's devices send each other, and how its compilation grows, from compiled modules.

  python benchmarks/scaling.py                     # 1 to 8 virtual devices of this CPU
  python benchmarks/scaling.py --topology=v5e:2x4  # a TPU's compiler; pip install 'jaxtune[tpu]'

No step runs. For every kind of parallelism, alone on 1, 2 and 8 devices, the bytes of the
collectives of one step stand beside those that theory wants. Then depth and width grow.
"""

import argparse
import os
import time
from typing import Any

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

import jax
import jax.numpy as jnp
import optax
from step import machine, markdown

from jaxtune import adapt, losses, models, plan, shard, train, tree

LLAMA: dict[str, Any] = dict(
  vocabulary=8192, width=512, hidden=1408, layers=4, heads=8, kv_heads=8, head_width=64
)
MIXTURE = {
  **LLAMA,
  'model_type': 'mixtral',
  'experts': 8,
  'expert_hidden': 512,
}
ROWS, LENGTH = 16, 256
WORD = 4  # bytes of a float32
METHODS = ('full', 'lora')


def lowered(config: Any, method: str, grid: Any) -> tuple[train.Lowered, Any]:
  """The step of a method on a mesh, and the shapes of its parameters."""
  model = models.decoder(config)
  options = {} if method == 'full' else {'rank': 16, 'also': None}

  def make(key: Any) -> Any:
    return adapt.create(method, key, model.init(key), **options)

  params = jax.eval_shape(make, jax.random.key(0))
  batch = {
    'tokens': jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32),
    'mask': jax.ShapeDtypeStruct((ROWS, LENGTH), bool),
  }
  made = train.lower(model, params, losses.causal_lm(model), optax.adamw(1e-3), batch, grid)
  return made, params


def theory(axis: str, config: Any, method: str, params: Any) -> dict[str, float]:
  """Bytes of a step, whole arrays as `plan.collectives` counts them, of the large arrays alone.

  data: the gradients are summed. fsdp: every layer is gathered in the forward pass and again in
  the backward pass, what is around the layers once, and the gradients are scattered. tensor: the
  activations are summed behind attention and MLP, and their gradients before them, and once for
  embedding and head each. sequence: keys and values are gathered in both passes, and their
  gradients scattered. expert: tokens are gathered and their sums scattered, in both passes, and the
  gradients of all but the experts summed.
  """
  trains = adapt.trainable(params)[0]
  trained = tree.size(trains)
  own = tree.map_weights(lambda path, leaf: leaf if '/experts/' in path else None, trains)
  experts = tree.size(own)  # on the device that learns them
  tokens = ROWS * LENGTH * config.width * WORD
  keys = 2 * ROWS * LENGTH * config.kv_heads * config.head_width * WORD
  layers = tree.size(params['decoder'])
  count = config.layers
  learns_below = method == 'full'
  gathers: float = {
    'fsdp': 2 * layers + tree.size(params) - layers,
    'sequence': 2 * count * keys,
    'expert': 3 * count * tokens,
  }.get(axis, 0)
  sums: float = {
    'data': trained,
    'fsdp': trained,
    'tensor': (4 * count + 2 - (not learns_below)) * tokens,
    'sequence': trained + count * keys,
    'expert': trained - experts + 2 * count * tokens,
  }[axis]
  return {'gathered': gathers, 'summed': sums}


def measured(compiled: Any) -> dict[str, float]:
  sums = plan.total_bytes(plan.collectives(compiled))
  gathered = sums.pop('all-gather', 0)
  summed = sums.pop('all-reduce', 0) + sums.pop('reduce-scatter', 0)
  return {'gathered': gathered, 'summed': summed, **sums}


def devices(topology: str) -> Any:
  if not topology:
    return jax.devices()
  from jax.experimental import topologies

  return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices


def traffic(found: Any, counts: list[int]) -> None:
  lines = [['axis', 'model', 'method', 'devices', 'gathered MB', 'of theory', 'summed MB']]
  lines[0] += ['of theory', 'other kinds', 'temporaries MB a device']
  for axis in shard.AXES:
    shape, name = (MIXTURE, 'mixture') if axis == 'expert' else (LLAMA, 'llama')
    config = models.DecoderConfig(**shape)
    for method in METHODS:
      for count in counts:
        made, params = lowered(config, method, shard.mesh({axis: count}, found[:count]))
        compiled = made.lowered.compile()
        got, want = measured(compiled), theory(axis, config, method, params)
        cells = [axis, name, method, str(count)]
        for kind in ('gathered', 'summed'):
          share = f'{got[kind] / want[kind]:.2f}' if want[kind] else '-'
          cells += [f'{got[kind] / 1e6:.1f}', share if count > 1 else '-']
        others = [f'{kind} {size / 1e6:.1f}' for kind, size in list(got.items())[2:]]
        temporaries = compiled.memory_analysis().temp_size_in_bytes / 1e6
        lines.append([*cells, ', '.join(others) or 'none', f'{temporaries:.0f}'])
  print(markdown(lines))


def growth(found: Any) -> None:
  lines = [['layers', 'width', 'method', 'lower s', 'compile s', 'of the first', 'HLO kB']]
  grid = shard.mesh({'fsdp': len(found)}, found)
  for method in METHODS:
    first = None
    for layers, width in ((12, 512), (48, 512), (96, 512), (12, 2048)):
      config = models.DecoderConfig(
        **{**LLAMA, 'layers': layers, 'width': width, 'hidden': 11 * width // 4, 'head_width': 0}
      )
      began = time.perf_counter()
      made, _ = lowered(config, method, grid)
      middle = time.perf_counter()
      compiled = made.lowered.compile()
      seconds = time.perf_counter() - middle
      first = first or seconds
      cells = [str(layers), str(width), method, f'{middle - began:.2f}', f'{seconds:.2f}']
      lines.append([*cells, f'{seconds / first:.2f}', f'{len(compiled.as_text()) / 1e3:,.0f}'])
  print(markdown(lines))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--topology', default='', help='of a TPU that need not be here, as v5e:2x4')
  options = parser.parse_args()
  found = list(devices(options.topology))
  counts = [n for n in (1, 2, 8) if n <= len(found)] if not options.topology else [len(found)]
  traffic(found, counts)
  print()
  growth(found)
  target = options.topology or f'{len(found)} virtual devices'
  print(f'\ncompiled for {target}; jax {jax.__version__}; {machine()}')


if __name__ == '__main__':
  main()
