"""The page of a loop, written after every round."""

import pathlib
from collections.abc import Sequence
from typing import Any

import markupsafe

from experiments import keys, page
from experiments.tuning import figures, moves, rounds, words
from experiments.tuning.moves import Round
from experiments.tuning.rounds import Loop


def write(
  it: Loop, done: Sequence[Round], seconds: float, ended: str, sentence: str = '', score: str = ''
) -> None:
  """Writes `report.html` of a loop; without a sentence it has not ended."""
  values = it.values(done)
  held = [done[0].before, *(one.after for one in done if one.pays)][-1]
  taken = sum(one.pays for one in done)
  page.write(
    it.folder / 'report.html',
    pathlib.Path(__file__).with_name('page.html'),
    title=it.folder.name,
    headlines=[sentence or f'{words.setting(values)} after {len(done)} rounds; {ended}.'],
    facts={
      'rounds': len(done),
      'moves': taken,
      'steps of a run': f'{it.steps:,}',
      'steps of all runs': f'{sum(one.steps for one in done):,}',
      'time': f'{seconds / 60:.1f} minutes',
    },
    standing={
      'head': ['', 'setting', 'held-out loss', *([f'test {score}'] if score else [])],
      'rows': [
        row(name, setting, found, score)
        for name, setting, found in (('end', values, held), ('start', it.start, done[0].before))
      ],
    },
    progress=markupsafe.Markup(figures.progress(done)),
    responses=[markupsafe.Markup(figure) for figure in figures.responses(done)],
    seeds=it.config.sweep.seeds,
    rounds=[
      {
        'folder': rounds.folder(pathlib.Path(), number, one.plan),
        'why': one.plan.why,
        'tried': words.listed(one.plan.values),
        'move': words.move(one),
        'pays': one.pays,
        'steps': f'{one.steps:,}',
        'time': f'{one.seconds:.0f} s',
      }
      for number, one in enumerate(done)
    ],
    ended=ended,
    reasons=it.reasons,
    again=f'python -m experiments.finetune --config={it.folder / "winner.py"} --workdir=runs/winner'
    if sentence
    else '',
    config=page.marked(it.config, keys.defaults()),
    files={
      'export/': 'the setting as an adapter, for other tools',
      'winner.py': 'its configuration, as one ordinary run',
      'result.json': 'every round in numbers',
      **{f'{rounds.folder(pathlib.Path(), n, one.plan)}/': 'a sweep' for n, one in enumerate(done)},
    },
  )


def row(name: str, values: dict[str, Any], found: moves.Measured, score: str) -> list[str]:
  """One setting over seeds."""
  scored = [words.measured(found.scores)] if score else []
  return [name, words.setting(values), words.measured(found.losses), *scored]
