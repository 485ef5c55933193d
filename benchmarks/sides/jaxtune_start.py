"""A run from the start of its process to the end of its first step, phase by phase."""

import time

BEGAN = time.time()  # before anything is imported

import argparse  # noqa: E402
import collections  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--config', required=True)
  parser.add_argument('--called', type=float, required=True, help='time.time() before this process')
  options = parser.parse_args()
  seconds = {'interpreter': BEGAN - options.called}
  cpu = {'interpreter': time.process_time()}
  last, spent = BEGAN, cpu['interpreter']

  def done(phase: str) -> None:
    nonlocal last, spent
    now, used = time.time(), time.process_time()
    seconds[phase], cpu[phase] = now - last, used - spent
    last, spent = now, used

  import experiments.finetune  # noqa: F401

  done('import')
  import jax

  from experiments import build, compilations, inputs, run

  compilations.keep()
  events: collections.Counter[str] = collections.Counter()
  inside: collections.Counter[str] = collections.Counter()
  jax.monitoring.register_event_listener(lambda event, **_: events.update([event.split('/')[-1]]))
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: inside.update({event.split('/')[-1]: duration})
  )
  spec = importlib.util.spec_from_file_location('config', options.config)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  job = build.job(module.get_config())
  given = inputs.texts(job)
  done('load')
  program = run.prepare(job, given)
  done('compile')
  batch = program.place(next(given.batches))
  jax.block_until_ready(program.step(program.state, program.frozen, batch))
  done('first step')
  print(
    json.dumps(
      {
        'seconds': seconds,
        'cpu': cpu,
        'compiled': events['cache_misses'],
        'found': events['cache_hits'],
        'tracing': inside['jaxpr_trace_duration'] + inside['jaxpr_to_mlir_module_duration'],
        'versions': {'python': sys.version.split()[0], 'jax': jax.__version__},
      }
    )
  )


if __name__ == '__main__':
  main()
