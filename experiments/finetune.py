"""Fine-tunes a pretrained model.

  python -m experiments.finetune --config=configs/quickstart.py --workdir=runs/quickstart

The same command goes on where an interrupted run stopped. Any value of the configuration can be
given on the command line, as in --config.optim.lr=3e-4; configs/base.py lists them all.
"""

from absl import flags
from ml_collections import config_flags

from experiments import entry, start

CONFIG = config_flags.DEFINE_config_file('config', None, 'The configuration, a file in configs/.')
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of this run.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would happen and what it takes; stop.')


def main() -> int:
  return start.start(CONFIG.value, WORKDIR.value, dry_run=DRY_RUN.value, pretrained=True)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config'])
  entry.launch(main)
