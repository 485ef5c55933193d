"""The runs of a grid one after another in one process, with one program: what needs no lanes.

  python -m in_turn --config=... --workdir=... --config.sweep.space="('optim.lr 1e-3, 3e-3',)"

Rows, model, features and the compiled step are those of all runs; what differs is in their states.
"""

import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from experiments import build, entry, inputs, run
from experiments.sweeping import records, settings, space
from jaxtune import adapt, train

CONFIG = config_flags.DEFINE_config_file('config', None, 'The configuration.')
WORKDIR = flags.DEFINE_string('workdir', '', 'The folder for what is measured.')


def main() -> int:
  config = CONFIG.value
  grid = space.grid(settings.check(config))
  loaded = build.load(config)
  job = build.adapted(config, loaded)
  given = inputs.features(job, runs=len(grid)) or inputs.texts(job)
  program = run.prepare(job, given)
  places = jax.tree.map(lambda x: x.sharding, program.state)
  cursor = given.batches.get_state()
  lines: list[dict[str, float]] = []
  for number, values in enumerate(grid):
    job = build.adapted(space.with_values(config, values), loaded)
    key = jax.random.fold_in(jax.random.key(job.config.seed), 1)
    trainable, _ = adapt.trainable(job.params)
    given.batches.set_state(cursor)
    found: list[dict[str, float]] = []
    train.fit(
      program,
      given.batches,
      steps=job.steps,
      state=train.init_state(trainable, job.optimizer, key, places),
      evaluate=lambda trained: inputs.measure(given, program, trained, 'valid'),
      log=found.append,
    )
    lines += [{'candidate': number, **line} for line in found]
  folder = pathlib.Path(WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  records.add_curves(folder, lines)
  return 0


if __name__ == '__main__':
  entry.launch(main)
