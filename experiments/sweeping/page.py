"""The end of a sweep: the winner exported, the configuration that makes it again, and the page."""

import math
import pathlib
import shutil
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe

from experiments import build, finish, keys, page, tasks, workdir
from experiments.keys import Config
from experiments.sweeping import figures, records, search, words
from experiments.sweeping.records import Candidate
from experiments.sweeping.search import Sweep
from experiments.sweeping.space import with_values
from jaxtune import report

AGAIN = 'winner.py'


def finish_sweep(it: Sweep) -> str:
  """Exports the winner, writes `winner.py`, the page and the result; returns what was reached."""
  role, best = search.winner(it)
  sentence = headline(it, role, best)
  job, params = it.runs.params(best.values, search.state(it, best))
  params = build.without_company(params)
  card = report.adapter_card(
    title=it.folder.name,
    summary=sentence,
    base_model=it.config.export.base or it.config.model,
    task=it.config.task,
    data=it.config.data.path,
    scores={'after': dict(best.scores)} if best.scores else {},
    hyperparameters=best.values,
    labels=job.corpus.names,
  )
  shutil.rmtree(it.folder / 'export', ignore_errors=True)
  finish.export(job, params, it.folder / 'export', card)
  report.replace_file(it.folder / AGAIN, again(it.config, best).encode())
  write(it, best, sentence)
  settings = {
    role: {
      'values': _without_seed(it.record.candidates[numbers[0]].values),
      'valid': [it.record.candidates[n].losses[it.rungs[-1]] for n in numbers],
      'test': [it.record.candidates[n].scores for n in numbers],
    }
    for role, numbers in it.record.confirm.items()
  }
  workdir.write_json(
    it.folder / workdir.RESULT,
    {
      'headline': sentence,
      'step': it.rungs[-1],
      'winner': {
        'role': role,
        'candidate': best.number,
        'values': best.values,
        'losses': best.losses,
      },
      'settings': settings,
      'candidates': len(it.record.of('search')),
      'dead': sum(c.dead for c in it.record.candidates),
      'steps': sum(c.step for c in it.record.candidates),
      'seconds': it.record.seconds,
    },
  )
  return sentence


def _without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in values.items() if name != 'seed'}


def score_name(it: Sweep) -> str:
  """The score of the task on the test rows, or the held-out loss where there are none."""
  name = tasks.TASKS[it.config.task].score
  tested = [c for c in it.record.candidates if c.scores]
  return (name if name in tested[0].scores else 'loss') if tested else 'held-out loss'


def scores(it: Sweep, role: str) -> list[float]:
  """That of each seed of a setting whose loss stayed a number."""
  name = score_name(it)
  found = [it.record.candidates[number] for number in it.record.confirm[role]]
  return [c.scores.get(name, c.losses[it.rungs[-1]]) for c in found if not c.dead]


def spread(values: Sequence[float]) -> tuple[float, float]:
  """(mean, standard deviation); the latter 0 for one value alone."""
  values = [value for value in values if math.isfinite(value)]
  if not values:
    return math.nan, 0.0
  return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def headline(it: Sweep, role: str, chosen: Candidate) -> str:
  """One sentence, which counts candidates and names the winner."""
  found = it.record.of('search')
  rows = len(it.runs.job.corpus.test.examples) or len(it.runs.job.corpus.valid.examples)
  seeds = len(scores(it, role))
  name = f'candidate {search.best(it, found).number}' if role == 'best' else 'the default setting'
  others = {'best': 'the best candidate', 'default': 'the default setting'}

  def reached(role: str) -> str:
    return '{:.3f} ± {:.3f}'.format(*spread(scores(it, role)))

  return (
    f'{len(found)} candidates; the winner is {name} ({words.values(chosen.values)}): '
    f'{score_name(it)} on {rows:,} held-out rows {reached(role)} over {seeds} '
    f'seed{"s" * (seeds != 1)}'
    + ''.join(f', {others[r]} {reached(r)}' for r in it.record.confirm if r != role)
    + '.'
  )


def again(config: Config, best: Candidate) -> str:
  """A configuration file of one ordinary run of the winner."""
  seed = config.seed if config.data.seed < 0 else config.data.seed
  made = with_values(
    config, {**best.values, 'data.seed': seed, 'train.eval_every': 0, 'train.patience': 0}
  )
  known = dict(keys.flatten(keys.defaults()))
  lines = ['r"""The winner of a sweep, as one ordinary run."""', '', 'from configs import base', '']
  lines += ['', 'def get_config():', '  config = base.get_config()']
  for name, value in keys.flatten(made):
    if not name.startswith('sweep.') and value != known.get(name):
      lines.append(f'  config.{name} = {value!r}')
  return '\n'.join([*lines, '  return config', ''])


def write(it: Sweep, best: Candidate, sentence: str) -> None:
  """Writes `report.html`."""
  found = it.record.of('search')
  rungs = it.rungs
  names = [d.key for d in it.space]
  front = search.best(it, found).number
  order = sorted(found, key=lambda c: (-max(c.losses, default=0), [*c.losses.values()][-1:]))
  page.write(
    it.folder / 'report.html',
    pathlib.Path(__file__).with_name('page.html'),
    title=it.folder.name,
    headlines=[sentence],
    facts={
      'candidates': len(found),
      'side by side': it.config.sweep.lanes,
      'proposed by': it.config.sweep.sampler,
      'died': sum(c.dead for c in found),
      'steps of all runs': f'{sum(c.step for c in it.record.candidates):,}',
      'time': f'{it.record.seconds:.0f} s',
    },
    about=f'Each was run for {rungs[-1]} steps with {it.config.sweep.seeds} seeds. The held-out '
    'loss chose the winner; the test rows chose nothing.',
    confirm=confirmed(it),
    curves=markupsafe.Markup(figures.curves(records.curves(it.folder), found, front)),
    surface=markupsafe.Markup(figures.surface(found, it.space, front)),
    rungs={
      'head': ['candidate', *names, *(f'step {rung}' for rung in rungs)],
      'rows': [
        [c.number, *(words.short(c.values[name]) for name in names), *(_loss(c, r) for r in rungs)]
        for c in order
      ],
    },
    again=f'python -m experiments.finetune --config={it.folder / AGAIN} --workdir=runs/winner',
    config=page.marked(it.config, keys.defaults()),
    files={
      'export/': 'the winner, for other tools',
      AGAIN: 'its configuration, as one ordinary run',
      'metrics.jsonl': 'the losses of all candidates',
      'sweep.json, states/': 'to go on from',
      'study.db': "Optuna's study, for its own tools",
    },
  )


def confirmed(it: Sweep) -> dict[str, Any]:
  """The table of the best and the default setting, and what seeds make of their distance."""
  name = score_name(it)
  rows = []
  for role, numbers in it.record.confirm.items():
    held = spread(search.held_out(it, role))
    mean, deviation = spread(scores(it, role))
    each = ', '.join(f'{score:.3f}' for score in scores(it, role))
    values = words.values(_without_seed(it.record.candidates[numbers[0]].values))
    rows.append(
      [role, values, '{:.4f} ± {:.4f}'.format(*held), f'{mean:.4f} ± {deviation:.4f}', each]
    )
  head = ['setting', 'values', 'held-out loss', name, 'each seed']
  return {'head': head, 'rows': rows, 'note': distance(it)}


def distance(it: Sweep) -> str:
  """How far the two settings are apart, beside what seeds alone move."""
  if len(it.record.confirm) == 1:
    return 'No candidate had a lower held-out loss than the default setting.'
  means, deviations = zip(*(spread(scores(it, role)) for role in it.record.confirm), strict=True)
  apart, wide = abs(means[0] - means[1]), max(deviations)
  return (
    f'They are {apart:.4f} apart, and seeds alone move one setting by {wide:.4f} (standard '
    f'deviation): {"more" if apart > 2 * wide else "no more"} than seeds explain. The winner '
    'is the one with the lower mean held-out loss.'
  )


def _loss(candidate: Candidate, rung: int) -> str:
  if rung not in candidate.losses:
    return ''
  return 'died' if candidate.dead else f'{candidate.losses[rung]:.4f}'
