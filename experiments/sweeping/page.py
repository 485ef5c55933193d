"""The end of a sweep: the winner exported, the configuration that makes it again, and the page."""

import pathlib
import shutil
import statistics
from typing import Any

import markupsafe

from experiments import build, finish, keys, page, tasks, workdir
from experiments.keys import Config
from experiments.sweeping import figures, records, search, words
from experiments.sweeping.records import Candidate
from experiments.sweeping.search import Sweep
from experiments.sweeping.space import with_values
from jaxtune import report
from jaxtune.typing import InputError

AGAIN = 'winner.py'


def finish_sweep(it: Sweep) -> str:
  """Exports the winner, writes `winner.py`, the page and the result; returns what was reached."""
  best = search.winner(it)
  run = records.load(it.folder, best, it.runs.one[0])
  if run is None:
    raise InputError(f'the state of the winner, candidate {best.number}, is damaged; start anew')
  sentence = headline(it, best)
  job, params = it.runs.params(best.values, run)
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
      'values': it.record.candidates[numbers[0]].values,
      'runs': [it.record.candidates[n].scores or _held_out(it, n) for n in numbers],
    }
    for role, numbers in it.record.confirm.items()
  }
  workdir.write_json(
    it.folder / workdir.RESULT,
    {
      'headline': sentence,
      'step': it.rungs[-1],
      'winner': {'candidate': best.number, 'values': best.values, 'losses': best.losses},
      'settings': settings,
      'candidates': len(it.record.of('search')),
      'dead': sum(c.dead for c in it.record.candidates),
    },
  )
  return sentence


def _held_out(it: Sweep, number: int) -> dict[str, float]:
  return {'loss': it.record.candidates[number].losses[it.rungs[-1]]}


def score_name(it: Sweep, candidate: Candidate) -> str:
  """The score of the task, or the loss."""
  name = tasks.TASKS[it.config.task].score
  return name if name in candidate.scores else 'loss'


def spread(it: Sweep, role: str) -> tuple[float, float, int]:
  """(mean, standard deviation, number) of the test score over the seeds of a setting."""
  found = [it.record.candidates[number] for number in it.record.confirm[role]]
  alive = [c for c in found if not c.dead]
  values = [c.scores.get(score_name(it, c), c.losses.get(it.rungs[-1], 0.0)) for c in alive]
  deviation = statistics.stdev(values) if len(values) > 1 else 0.0
  return (statistics.fmean(values), deviation, len(values)) if values else (float('nan'), 0.0, 0)


def headline(it: Sweep, best: Candidate) -> str:
  """One sentence, which counts candidates and names the winner."""
  mean, deviation, seeds = spread(it, 'winner')
  usual, own, _ = spread(it, 'default')
  name = score_name(it, best)
  rows = len(it.runs.job.corpus.test.examples) or len(it.runs.job.corpus.valid.examples)
  return (
    f'{len(it.record.of("search"))} candidates; the winner is candidate {best.number} '
    f'({words.values(best.values)}): {name} on {rows:,} held-out rows {mean:.3f} ± {deviation:.3f} '
    f'over {seeds} seed{"s" * (seeds != 1)}, the default setting {usual:.3f} ± {own:.3f}.'
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
    about=f'Both were run {it.config.sweep.seeds} times with other seeds for {rungs[-1]} steps and '
    'measured on rows that chose nothing.',
    confirm=confirmed(it),
    curves=markupsafe.Markup(figures.curves(records.curves(it.folder), found, best.number)),
    surface=markupsafe.Markup(figures.surface(found, it.space, best.number)),
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
  """The table of the winner and the default setting."""
  best = search.winner(it)
  name = score_name(it, best)
  rows = []
  for role in it.record.confirm:
    mean, deviation, seeds = spread(it, role)
    runs = [it.record.candidates[number] for number in it.record.confirm[role]]
    values = {k: v for k, v in runs[0].values.items() if k != 'seed'}
    each = ', '.join(f'{c.scores.get(name, c.losses.get(it.rungs[-1], 0)):.3f}' for c in runs)
    rows.append([role, words.values(values), f'{mean:.4f}', f'{deviation:.4f}', seeds, each])
  mean, deviation, _ = spread(it, 'winner')
  usual, own, _ = spread(it, 'default')
  apart = abs(mean - usual)
  wide = max(deviation, own)
  note = (
    f'They are {apart:.4f} apart, and seeds alone move one setting by {wide:.4f} (standard '
    'deviation). ' + ('More than seeds explain.' if apart > 2 * wide else 'Seeds may explain it.')
  )
  return {'head': ['setting', 'values', name, 'over seeds ±', 'seeds', 'each'], 'rows': rows,
          'note': note}  # fmt: skip


def _loss(candidate: Candidate, rung: int) -> str:
  if rung not in candidate.losses:
    return ''
  return 'died' if candidate.dead else f'{candidate.losses[rung]:.4f}'
