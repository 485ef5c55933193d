"""Many runs in one program: searches learning rate, rank, seed and more over one frozen base.

  python -m experiments.sweep --config=configs/sweep_quickstart.py --workdir=runs/sweep

Candidates run side by side as lanes of one compiled step; the best of them go on. The winner and
the setting of the configuration are then run with several seeds, and the winner is exported. The
same command goes on where an interrupted sweep stopped. What is searched is `sweep.space`, see
docs/sweep.md; any value of the configuration can be given on the command line.
"""

from absl import flags
from ml_collections import config_flags

from experiments import entry
from experiments.sweeping import start

CONFIG = config_flags.DEFINE_config_file('config', None, 'The configuration, a file in configs/.')
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of this sweep.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would run and what it takes; stop.')


def main() -> int:
  return start.start(CONFIG.value, WORKDIR.value, dry_run=DRY_RUN.value)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config'])
  entry.launch(main)
