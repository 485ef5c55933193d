"""The end of a loop: the setting exported, the configuration that makes it again, the result."""

import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from experiments import finish as runs
from experiments import keys, workdir
from experiments.keys import Config
from experiments.sweeping import page as sweeps
from experiments.sweeping.records import Candidate
from experiments.sweeping.space import with_values
from experiments.tuning import page, rounds, settings, words
from experiments.tuning.moves import Measured, Round
from experiments.tuning.rounds import Loop
from jaxtune import report

AGAIN = sweeps.AGAIN


def finish(it: Loop, done: Sequence[Round], seconds: float, ended: str) -> str:
  """Writes all that is left of a loop; returns what was reached."""
  number, role = source(done)
  plan = done[number].plan
  config = it.round(done[:number], plan)
  job, params, one = rounds.job(config, rounds.folder(it.folder, number, plan), it.shared, role)
  values = it.values(done)
  test = bool(job.corpus.test.examples)
  name = rounds.score_name(config, one.scores)
  steps = sum(found.steps for found in done)
  sentence = words.headline(
    values,
    name,
    len((job.corpus.test if test else job.corpus.valid).examples),
    done[0].before,
    final(done),
    steps,
    seconds / 60,
  )
  card = report.adapter_card(
    title=it.folder.name,
    summary=sentence,
    base_model=config.export.base or config.model,
    task=config.task,
    data=config.data.path,
    scores={'after': dict(one.scores)} if one.scores else {},
    hyperparameters=values,
    labels=job.corpus.names,
  )
  shutil.rmtree(it.folder / 'export', ignore_errors=True)
  runs.export(job, params, it.folder / 'export', card)
  report.replace_file(
    it.folder / AGAIN, again(it.config, {'seed': config.seed, **values, **one.values}).encode()
  )
  page.write(it, done, seconds, ended, sentence, name)
  workdir.write_json(
    it.folder / workdir.RESULT,
    {
      'headline': sentence,
      'step': it.steps,
      'start': it.start,
      'values': values,
      'ended': ended,
      'budget': list(settings.budget(it.config)),
      'score': name,
      'settings': {'start': plain(done[0].before), 'final': plain(final(done))},
      'rounds': [as_json(found) for found in done],
      'steps': steps,
      'minutes': seconds / 60,
    },
  )
  return sentence


def source(done: Sequence[Round]) -> tuple[int, str]:
  """The round, and which of its settings, that the final one was last measured in."""
  paying = [number for number, one in enumerate(done) if one.pays]
  return (paying[-1], 'best') if paying else (0, 'default')


def final(done: Sequence[Round]) -> Measured:
  """The final setting over seeds."""
  number, role = source(done)
  return done[number].after if role == 'best' else done[number].before


def as_json(one: Round) -> dict[str, Any]:
  return {
    'key': one.plan.key,
    'response': [[value, number(one.response[value])] for value in one.plan.values],
    'before': {'value': one.present, **plain(one.before)},
    'best': {'value': one.best, **plain(one.after)},
    'taken': one.pays,
    'move': words.move(one),
    'steps': one.steps,
  }


def plain(found: Measured) -> dict[str, Any]:
  return {'losses': [*map(number, found.losses)], 'scores': [*map(number, found.scores)]}


def number(value: float) -> float | None:
  """JSON has no other."""
  return value if math.isfinite(value) else None


def again(config: Config, values: dict[str, Any]) -> str:
  """A configuration file of one ordinary run of a setting."""
  usual = {f'tune.{name}': value for name, value in keys.defaults().tune.items()}
  return sweeps.again(with_values(config, usual), Candidate(0, values))


def end(folder: pathlib.Path, headline: str) -> None:
  """The last lines of a finished loop."""
  print(f'report   {folder / "report.html"}')
  print(f'export   {folder / "export"}')
  print(f'again    {folder / AGAIN}')
  print(headline)
