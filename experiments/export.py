"""Writes the tuned model of a run as one Hugging Face folder, its adapter merged into the weights.

  python -m experiments.export --workdir=runs/quickstart --folder=merged

The adapter alone is in the `export` folder of the run already.
"""

import pathlib

from absl import flags

from experiments import entry, tuned
from jaxtune import interop
from jaxtune.typing import InputError

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a finished run.', required=True)
FOLDER = flags.DEFINE_string('folder', None, 'The folder to write.', required=True)


def main() -> int:
  run = tuned.open_run(WORKDIR.value)
  if pathlib.Path(FOLDER.value).resolve().is_relative_to(pathlib.Path(WORKDIR.value).resolve()):
    raise InputError(
      f'{FOLDER.value} lies in the run itself; give a --folder outside {WORKDIR.value}'
    )
  source = run.source or f'{WORKDIR.value}/export'
  interop.save_hf(FOLDER.value, run.model, run.params, source=source, labels=run.names or None)
  print(f'merged model written to {FOLDER.value}')
  return 0


if __name__ == '__main__':
  entry.launch(main)
