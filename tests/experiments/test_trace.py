"""The profile of some steps of a run."""

import gzip
import json
from types import SimpleNamespace

import pytest

from experiments import trace
from jaxtune import report
from jaxtune.typing import InputError


@pytest.mark.parametrize(
  ('text', 'steps'), [('', []), ('10-12', [10, 11, 12]), ('7-7', [7]), ('3', [2, 3, 4])]
)
def test_steps(text, steps):
  assert [*trace.steps_of(text)] == steps


@pytest.mark.parametrize('text', ['0', '-3', '5-4', '0-2', 'all', '1,2', '2-'])
def test_what_names_no_steps(text):
  with pytest.raises(InputError, match='train.profile is .*give steps as 10-12'):
    trace.steps_of(text)


@pytest.mark.slow
def test_a_run_writes_the_steps_that_it_is_asked_for(configure, launch, tmp_path, capsys):
  folder = tmp_path / 'run'
  assert launch(configure(values={'train.profile': '2-3'}), folder) == 0
  assert f'trace    {folder / "trace"}' in capsys.readouterr().out
  assert 'trace/' in (folder / 'report.html').read_text()
  (events,) = (folder / 'trace').rglob('*.trace.json.gz')
  names = [event.get('args', {}) for event in json.loads(gzip.open(events).read())['traceEvents']]
  assert {int(args['step_num']) for args in names if 'step_num' in args} == {2, 3}
  with pytest.raises(InputError, match='up to step 9, but the run has 4 steps'):
    launch(configure(values={'train.profile': '8'}), tmp_path / 'other')
  assert len(report.read_metrics(folder / 'metrics.jsonl')) >= 4


def test_a_run_that_ends_early_closes_its_trace(tmp_path):
  program = SimpleNamespace(step=lambda state, frozen, batch: (state + 1, {}))
  program._replace = lambda step: SimpleNamespace(step=step)
  with trace.traced(program, '6-8', 4, tmp_path / 'trace') as made:
    for state in range(2):  # steps 5 and 6
      made.step(state, None, None)
  assert [*(tmp_path / 'trace').rglob('*.xplane.pb')]
  with trace.traced(program, '2-3', 4, tmp_path / 'none') as made:
    made.step(0, None, None)
  assert not (tmp_path / 'none').exists()
