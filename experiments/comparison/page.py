"""The page of a comparison: one HTML file that needs nothing but itself."""

import math
import pathlib
from typing import Any, NamedTuple

import markupsafe

from configs import compare_optimizers
from experiments import page
from experiments.comparison import figures, settings, words
from experiments.comparison.contest import Contest, comparison_seeds, tuning_seeds
from experiments.comparison.effects import Flips, Robustness, Stall
from experiments.keys import Config
from jaxtune import report


class Results(NamedTuple):
  """All that a comparison found."""

  contests: list[Contest]
  robustness: list[Robustness]
  flips: list[Flips]
  stalls: list[Stall]
  confidence: float
  seconds: float

  def sentences(self) -> list[str]:
    """What was seen, one sentence a task and an effect."""
    return [
      *map(words.headline, self.contests),
      *map(words.robust, self.robustness),
      *(words.flipped(one, self.confidence) for one in self.flips),
      *map(words.stalled, self.stalls),
    ]


def write(folder: pathlib.Path, config: Config, results: Results) -> None:
  """Writes `report.html`."""
  page.write(
    folder / 'report.html',
    pathlib.Path(__file__).with_name('page.html'),
    title=folder.name,
    headlines=[words.headline(one) for one in results.contests],
    facts={
      'rules': len(config.rules),
      'seeds': 'paired: the same start and data for every rule',
      'confidence': f'{config.confidence:.0%} for all verdicts of a task',
      'schedule': f'{config.schedule}, the same for all',
      'time of this start': f'{results.seconds:.0f} s',
    },
    columns=list(zip(words.COLUMNS, words.JUSTIFY, strict=True)),
    tasks=[section(config, one) for one in results.contests],
    effects=effects(results),
    config=page.marked(config, compare_optimizers.get_config()),
    files={
      'metrics.jsonl': 'the losses of all lanes at all points',
      'result.json': 'what is on this page, as numbers',
      'run.json': 'configuration and versions',
    },
  )


def section(config: Config, contest: Contest) -> dict[str, Any]:
  """What the page shows of a task."""
  name = contest.task.name
  c = config[name]
  tuning, comparison = tuning_seeds(config, name), comparison_seeds(config, name)
  decay = settings.decay_start(config, c.steps) if config.schedule == 'wsd' else None
  return {
    'name': name,
    'about': contest.task.about,
    'how': f'{c.steps:,} steps. Every rule got {c.rates} learning rates, a factor of '
    f'{config.spacing:.3g} apart, on {len(tuning)} seed{"s" * (len(tuning) > 1)}; the best met '
    f'the others on {len(comparison)} further seeds.',
    'rows': words.rows(contest),
    'edges': words.edges(contest),
    'figure': markupsafe.Markup(figures.losses(contest, decay)),
    'verdicts': [words.verdict(contest.task, one) for one in contest.verdicts],
  }


def effects(results: Results) -> list[dict[str, Any]]:
  """What the page shows of the effects that were looked for."""
  shown = []
  if results.robustness:
    shown.append(
      {
        'title': 'AdaGrad-Norm forgives the learning rate',
        'source': 'Ward, Wu and Bottou, arXiv 1806.01811',
        'about': 'Final losses against the rate of the first step, at a constant rate. A cross at '
        'the top: the runs diverged. A rate works where the loss comes 90% of the way down that '
        'the best run of the same seed comes.',
        'sentences': [words.robust(one) for one in results.robustness],
        'figure': markupsafe.Markup(figures.robustness(results.robustness)),
        'more': [],
      }
    )
  if results.flips:
    shown.append(
      {
        'title': 'Ranks flip when the learning rate decays',
        'source': 'Hu et al., arXiv 2404.06395; Wen et al., arXiv 2509.02046',
        'about': 'A pair flips where one run is ahead when the decay (shaded) starts and the other '
        'at the end, both beyond their confidence intervals, which hold for all pairs together.',
        'sentences': [words.flipped(one, results.confidence) for one in results.flips],
        'figure': markupsafe.Markup(figures.flips(results.flips)),
        'more': [
          f'{one.task.name}: {words.flip(one, flip)}' for one in results.flips for flip in one.shown
        ],
      }
    )
  for one in results.stalls:
    shown.append(
      {
        'title': 'Parameters in bfloat16 stall without stochastic rounding',
        'source': 'Gupta et al., arXiv 1502.02551',
        'about': 'The same small learning rate with parameters stored in three ways; losses and '
        'updates are computed in float32.',
        'sentences': [words.stalled(one)],
        'figure': markupsafe.Markup(figures.stall(one)),
        'more': [words.verdict(one.task, found) for found in one.verdicts],
      }
    )
  return shown


def as_json(results: Results) -> dict[str, Any]:
  """The results as plain numbers; None for what diverged."""
  headline = ' '.join(results.sentences())
  steps = sum(int(e.tuned.steps[-1]) for c in results.contests for e in c.entries.values())
  return plain(
    {
      'headline': headline,
      'step': steps,
      'tasks': {
        one.task.name: {
          'rules': {
            label: {
              'learning_rate': entry.rates[entry.best],
              'at_edge': entry.at_edge,
              'final': one.final[label],
              'state_bytes': entry.state_bytes,
              'step_seconds': entry.step_seconds,
            }
            for label, entry in one.entries.items()
          },
          'log10': one.task.orders,
          'verdicts': [v._asdict() for v in one.verdicts],
        }
        for one in results.contests
      },
      'effects': {
        'adagrad_norm': {
          one.task.name: {
            'sizes': one.sizes,
            'final': one.final,
            'decades': one.decades,
            'wider': one.wider,
          }
          for one in results.robustness
        },
        'rank_flips': {
          one.task.name: {
            'pairs': one.pairs,
            'shown': [flip._asdict() for flip in one.shown],
            'moved': one.moved,
          }
          for one in results.flips
        },
        'bfloat16': {
          one.task.name: {
            'final': {label: loss[:, -1] for label, loss in one.loss.items()},
            'verdicts': [v._asdict() for v in one.verdicts],
          }
          for one in results.stalls
        },
      },
    }
  )


def plain(value: Any) -> Any:
  """Arrays and intervals as lists and dicts that JSON can hold."""
  if isinstance(value, report.Interval):
    return plain(value._asdict())
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  if hasattr(value, 'tolist'):
    return plain(value.tolist())
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
