"""Writes the tuned model of a run as one Hugging Face folder, its adapter merged into the weights.

  python -m experiments.export --workdir=runs/quickstart --folder=merged

The adapter alone is in the `export` folder of the run already. The written model is opened again
and compared with the one under its adapter, on a few rows of the data.
"""

import pathlib

import numpy as np
from absl import flags

from experiments import dataset, entry, sources, tuned
from experiments.tuned import Tuned
from jaxtune import adapt, data, interop, tree
from jaxtune.data.batch import Batch
from jaxtune.typing import InputError

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a finished run.', required=True)
FOLDER = flags.DEFINE_string('folder', None, 'The folder to write.', required=True)
ROWS = 4  # to compare on: of a language model each token has as many logits as there are words


def main() -> int:
  run = tuned.open_run(WORKDIR.value)
  if pathlib.Path(FOLDER.value).resolve().is_relative_to(pathlib.Path(WORKDIR.value).resolve()):
    raise InputError(
      f'{FOLDER.value} lies in the run itself; give a --folder outside {WORKDIR.value}'
    )
  source = run.source or f'{WORKDIR.value}/export'
  interop.save_hf(FOLDER.value, run.model, run.params, source=source, labels=run.names or None)
  print(f'merged model written to {FOLDER.value}')
  if any(adapt.is_adapter(leaf) for _, leaf in tree.named_weights(run.params)):
    batch = example(run)
    _, merged = interop.load(FOLDER.value)
    found = adapt.merge_difference(
      run.model.apply, run.params, merged, batch['tokens'], batch['mask']
    )
    print(
      f'largest logit difference {found["max_abs"]:.2e} (logits up to {found["scale"]:.3g}) '
      'between the merged model and the adapter'
    )
  return 0


def example(run: Tuned) -> Batch:
  """A few rows of the run's data; token ids in order where that is gone."""
  config = run.config
  try:
    splits = sources.read(config).splits
    rows = next(rows for name in ('test', 'valid', 'train') if (rows := splits[name]))[:ROWS]
    part = dataset.encode_rows(config, run.tok, rows, run.names)
    examples = [{'tokens': tokens} for tokens in dataset.all_tokens(part.examples)][:ROWS]
    (batch,) = data.eval_batches(examples, len(examples), max_length=config.data.max_length)
  except InputError:
    length = min(config.data.max_length, run.model.config.vocabulary)
    batch = {'tokens': np.arange(length, dtype=np.int32)[None], 'mask': np.ones((1, length), bool)}
  return batch


if __name__ == '__main__':
  entry.launch(main)
