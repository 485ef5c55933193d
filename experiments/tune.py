"""Train, evaluate, adjust: tunes one key after the other by sweeps, while it pays.

  python -m experiments.tune --config=configs/quickstart.py --workdir=runs/tune

It starts from the usual values for the model and the method, sweeps the learning rate, then the
rank and the rest, within a budget of steps or minutes (`tune.steps`, `tune.minutes`), and explains
each move. The same command goes on where an interrupted loop stopped. See docs/sweep.md.
"""

from absl import flags
from ml_collections import config_flags

from experiments import entry
from experiments.tuning import start

CONFIG = config_flags.DEFINE_config_file('config', None, 'The configuration, a file in configs/.')
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of this loop.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the rounds and their costs; stop.')


def main() -> int:
  return start.start(CONFIG.value, WORKDIR.value, dry_run=DRY_RUN.value)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config'])
  entry.launch(main)
