"""A dry run: what would be trained, on what, and how much memory it takes."""

import jax

from experiments import inputs, keys, run
from experiments.build import Job
from jaxtune import data, plan, shard, tree


def preview(job: Job) -> int:
  """Prints shapes, routing, the first batch as the loss sees it, and the memory forecast."""
  config = job.config
  routes = tree.routing(job.params.rules, job.params)
  print(tree.format_routing(routes))
  trained = sum(_size(route) for route in routes if route.value)
  total = sum(_size(route) for route in routes)
  print(f'\n{trained:,} of {total:,} parameters are trained ({100 * trained / total:.2f}%)\n')
  for note in job.corpus.remarks():
    print(note)
  given = inputs.texts(job)
  program, batch = run.prepare(job, given), next(given.batches)
  if jax.device_count() > 1:
    params = tree.combine(program.state.trainable, program.frozen)
    print(f'\non {jax.device_count()} devices:')
    print(shard.format_placement(shard.placement(params)))
  shapes = keys.flatten(batch)
  print('\nbatch: ' + ', '.join(f'{k} {v.dtype}{list(v.shape)}' for k, v in shapes))
  print(data.preview(batch, job.tok.encoder, names=job.corpus.names or None))
  print(f'\n{job.steps} steps of {config.train.batch_size} rows; memory while a step runs:')
  forecast = plan.forecast(program.compiled, program.state, program.frozen, program.batch)
  for name, size in forecast._asdict().items():
    print(f'  {name:12} {size / 2**20:10.1f} MiB')
  kernels = plan.attention_kernels(program.compiled)
  if kernels:
    print(f'kernel of attention: {", ".join(kernels)}')
  return 0


def _size(route: tree.Route) -> int:
  size = 1
  for side in route.shape:
    size *= side
  return size
