r"""How far a tuned language model moved the classifier's score of held-out continuations.

  python -m experiments.sentiment_score --classifier=runs/classifier \
    --openings=runs/continuations/held_out.jsonl --workdir=runs/dpo0,runs/dpo1,runs/dpo2

Before and after continue the same openings with the same seeds. Printed are the mean scores
(log-odds in nats), the share that the classifier calls positive, the difference with a 95% interval
over openings, each the mean of its samples and of the runs, the divergence from the base in nats a
continuation, estimated on the continuations of the tuned model, and their length in tokens.
"""

import math
import pathlib
from typing import Any

import numpy as np
from absl import flags
from scipy import stats

from experiments import entry, tuned, workdir
from experiments.sentiment import judge, sampled
from jaxtune import data, interop
from jaxtune.typing import InputError

CLASSIFIER = flags.DEFINE_string('classifier', None, 'The folder of its run.', required=True)
OPENINGS = flags.DEFINE_string('openings', None, 'Rows with a column "prompt".', required=True)
WORKDIR = flags.DEFINE_list('workdir', None, 'Folders of finished runs, one a seed.', required=True)
OUTPUT = flags.DEFINE_string('output', '', 'A .json file for the numbers.')
LABEL = flags.DEFINE_string('label', '', 'The class that is wanted; the last one by default.')
SAMPLES = flags.DEFINE_integer('samples', 4, 'Continuations of each opening.', lower_bound=2)
MAX_TOKENS = flags.DEFINE_integer('max_tokens', 24, 'Of a continuation.', lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Continuations at a time.', lower_bound=2)
SEED = flags.DEFINE_integer('seed', 1000, 'Of the draws.', lower_bound=0)


def main() -> int:
  rows = data.read(OPENINGS.value)
  reward = judge.reward(CLASSIFIER.value, LABEL.value)
  runs = [tuned.open_run(folder) for folder in WORKDIR.value]
  source = runs[0].source
  if source is None or any(run.source != source for run in runs):
    raise InputError('--workdir: the runs must be of one pretrained model, to compare with it')
  model, params = interop.load(source, dtype='float32')
  base = sampled.Policy(model, params, interop.tokenizer(source))
  before, _, length = scored(base, base, rows, reward)
  print(
    f'{source}: score {before.mean():+.2f} nats, {length:.1f} tokens a continuation', flush=True
  )
  found = []
  for folder, run in zip(WORKDIR.value, runs, strict=True):
    policy = sampled.merged(model, run.params, base.tok)
    found.append(scored(policy, base, rows, reward))
    after, kl, length = found[-1]
    print(f'{folder}: {shown(before, after)}, KL {kl.mean():.2f}, {length:.1f} tokens', flush=True)
  after = np.mean([scores for scores, _, _ in found], axis=0)
  kl = np.array([kl.mean() for _, kl, _ in found])
  low, high = interval((after - before).mean(axis=1))
  print(
    f'{len(found)} runs, {len(rows)} openings x {SAMPLES.value}: {shown(before, after)}, '
    f'difference {np.mean(after - before):+.2f} [{low:+.2f}, {high:+.2f}] nats, '
    f'KL {kl.mean():.2f} nats a continuation'
  )
  if OUTPUT.value:
    workdir.write_json(pathlib.Path(OUTPUT.value), numbers(before, found, low, high))
  return 0


def scored(
  policy: sampled.Policy, base: sampled.Policy, rows: list[Any], reward: Any
) -> tuple[np.ndarray, np.ndarray, float]:
  """Scores and log-ratios of all continuations, both `[N, K]`, and their mean length in tokens."""
  found = [
    one
    for part in sampled.continued(
      policy,
      rows,
      reward,
      samples=SAMPLES.value,
      max_tokens=MAX_TOKENS.value,
      seed=SEED.value,
      batch_size=BATCH_SIZE.value,
    )
    for one in part
  ]
  scores = np.stack([one.scores for one in found])
  length = float(np.mean([len(row) - one.length for one in found for row in one.tokens]))
  if policy is base:
    return scores, np.zeros_like(scores), length
  width = max(one.length for one in found) + MAX_TOKENS.value
  return scores, sampled.divergence(policy, base.params, found, width), length


def shown(before: np.ndarray, after: np.ndarray) -> str:
  """Means and positive shares, then and now."""
  return (
    f'score {before.mean():+.2f} to {after.mean():+.2f} nats, '
    f'positive {(before > 0).mean():.0%} to {(after > 0).mean():.0%}'
  )


def interval(differences: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
  """Student's interval of a mean."""
  count = len(differences)
  if count < 2:
    return -math.inf, math.inf
  half = stats.t.ppf((1 + confidence) / 2, count - 1) * differences.std(ddof=1) / math.sqrt(count)
  return differences.mean() - half, differences.mean() + half


def numbers(before: np.ndarray, found: list[Any], low: float, high: float) -> dict[str, Any]:
  """What --output holds."""
  return {
    'openings': len(before),
    'samples': before.shape[1],
    'before': {'score': float(before.mean()), 'positive': float((before > 0).mean())},
    'runs': [
      {
        'score': float(after.mean()),
        'positive': float((after > 0).mean()),
        'difference': float((after - before).mean()),
        'kl': float(kl.mean()),
        'tokens': length,
      }
      for after, kl, length in found
    ],
    'difference': [float(low), float(high)],
  }


if __name__ == '__main__':
  entry.launch(main)
