"""The loop over sweeps: its decisions, its files, interrupted, and on bad input."""

import json
import math

import markupsafe
import pytest

from experiments.sweeping import runs
from experiments.sweeping import start as sweeps
from experiments.tuning import dimensions, finish, moves, settings, start, words
from experiments.tuning.moves import Budget, Measured, Plan, Round
from jaxtune import plan
from jaxtune.typing import InputError

pytest.importorskip('optuna')

ORDER = ('optim.lr', 'method.rank', 'optim.warmup', 'optim.lr')
VALUES = {'optim.lr': 1e-3, 'method.rank': 16, 'optim.warmup': 0.06}


def ended(key, tried, present, best, before, after, place=0):
  """A round whose response falls towards its best value."""
  response = {value: abs(tried.index(value) - tried.index(best)) + 0.5 for value in tried}
  one, two = Measured(before, before), Measured(after, after)
  return Round(Plan(key, tried, place, ''), present, best, response, one, two, 30, 60.0)


RATES = (1e-4, 1e-3, 1e-2)
BETTER = ended('optim.lr', RATES, 1e-3, 1e-2, (0.52, 0.54), (0.43, 0.45))
SAME = ended('optim.lr', RATES, 1e-3, 1e-2, (0.52, 0.54), (0.52, 0.53))
STAYS = ended('optim.lr', RATES, 1e-3, 1e-3, (0.52, 0.54), (0.52, 0.54))
WORSE = ended('optim.lr', RATES, 1e-3, 1e-2, (0.52, 0.54), (0.51, 0.99))
DEAD = ended('optim.lr', RATES, 1e-3, 1e-4, (0.52, math.nan), (0.51, 0.53))


def test_a_gain_counts_if_seeds_move_less():
  assert BETTER.pays and BETTER.value == 1e-2
  assert not any(one.pays for one in (SAME, STAYS, WORSE)) and SAME.value == 1e-3
  assert DEAD.pays  # what dies with one of the seeds is worse than anything
  edge = ended('optim.lr', RATES, 1e-3, 1e-2, (0.6, 0.6), (0.5, 0.7))
  assert not edge.pays and edge.noise == pytest.approx(0.1 * 2**0.5)


def test_moves_in_words():
  assert words.move(BETTER) == (
    'learning rate 0.001 -> 0.01: held-out loss 0.4400 ± 0.0141 over 2 seeds, before 0.5300 ± '
    '0.0141; it is the largest of this round, and smaller ones are worse (0.001: 1.5000; here '
    '0.5000)'
  )
  assert words.move(SAME).startswith('learning rate 0.001 -> 0.01 not taken: 0.0050 (0.9%) better')
  assert 'higher on both sides (0.0001: 1.5000, 0.01: 1.5000; here' in words.move(STAYS)
  assert 'not taken: better with the first seed, and over 2 seeds 0.7500' in words.move(WORSE)
  assert 'before no number' in words.move(DEAD)


def test_a_best_value_at_an_edge_extends_the_search():
  found = moves.following(ORDER, {**VALUES, 'optim.lr': 1e-2}, [BETTER])
  assert found.key == 'optim.lr' and found.values == (1e-2, 3e-2, 9e-2) and found.place == 0
  inside = BETTER._replace(best=1e-3, present=1e-2)
  assert moves.following(ORDER, VALUES, [inside]).key == 'method.rank'
  assert moves.following(ORDER, VALUES, [SAME]).key == 'method.rank'  # what is not taken is no edge
  low = dimensions.beyond('optim.lr', RATES, 1e-4)
  assert low == (1.11e-5, 3.33e-5, 1e-4)
  assert dimensions.beyond('method.rank', (4, 16, 32), 32) == (32, 64, 128)
  assert dimensions.beyond('method.rank', (64, 128, 256), 256) == ()
  assert dimensions.beyond('optim.warmup', (0.0, 0.06, 0.2), 0.2) == ()


def test_the_order_and_its_end():
  first = moves.following(ORDER, VALUES, [])
  assert first.values == (1.11e-4, 3.33e-4, 1e-3, 3e-3, 9e-3) and first.place == 0
  assert 'did not pay' in moves.following(ORDER, VALUES, [SAME, STAYS])
  again = ended('method.rank', (4, 16, 32), 32, 16, (0.5, 0.5), (0.4, 0.4), place=1)
  assert moves.following(ORDER, VALUES, [SAME, again, SAME]).place == 1
  last = moves.following(ORDER, VALUES, [BETTER._replace(plan=Plan('optim.warmup', RATES, 2, ''))])
  assert last.values == (5.77e-4, 1e-3, 1.73e-3) and 'in finer steps' in last.why
  end = BETTER._replace(plan=Plan('optim.warmup', RATES, 3, ''))
  assert moves.following(ORDER, VALUES, [end]) == 'everything in tune.order is tuned'


def test_the_budget():
  assert moves.cost(Plan('optim.lr', RATES, 0, ''), seeds=3, steps=10) == 70
  assert Budget(70, 0.0).holds(70, 99.0) and not Budget(69, 0.0).holds(70, 0.0)
  assert Budget(0, 2.0).holds(10**9, 2.0) and not Budget(100, 2.0).holds(10, 2.1)


def test_values_are_around_the_present_one():
  assert dimensions.around('method.rank', 3) == (3, 6)
  assert dimensions.around('method.rank', 256) == (64, 256)
  assert dimensions.around('optim.warmup', 0.1) == (0.0, 0.06, 0.1, 0.2)
  assert dimensions.around('optim.lr', 0.00123456)[2] == 0.00123456


def test_where_it_starts(configure):
  advised = plan.starting_point('lora', 'adamw', width=384, steps=180, task='classification')
  config = configure(values={'method.rank': 8, 'optim.lr': 1e-3})
  values, lines = settings.chosen(config, advised)
  assert values['optim.lr'] == 1.8e-3 and values['method.rank'] == 8
  assert lines[0].startswith('optim.lr 0.0018: 10 times the rate of full fine-tuning, 5e-5 (2000')
  assert any(x.startswith('method.rank 8, from the configuration (usual is 16') for x in lines)
  assert 'optim.weight_decay 0, the default' in lines


def test_keys_that_the_method_and_the_rule_lack_are_left_out(configure):
  config = configure(values={'method.name': 'ia3', 'optim.name': 'sgd'})
  assert settings.order(config) == ['optim.lr', 'optim.warmup', 'optim.lr']


SMALL = {
  'train.steps': 3,
  'train.eval_every': 0,
  'train.save_every': 2,
  'optim.lr': 1e-2,
  'sweep.lanes': 1,  # one program is compiled
  'sweep.seeds': 2,
  'tune.steps': 40,
  'tune.minutes': 0.0,
  'tune.order': ('optim.weight_decay', 'optim.warmup'),
}


@pytest.fixture(scope='module')
def small(configure):
  return lambda **values: configure(values={**SMALL, **values})


@pytest.fixture(scope='module')
def tuned(small, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tune') / 'w'
  assert start.start(small(), str(folder)) == 0
  return folder


def result(folder):
  return json.loads((folder / 'result.json').read_text())


@pytest.mark.slow
def test_the_loop_ends_with_a_setting(tuned, small, capsys):
  found = result(tuned)
  assert [one['key'] for one in found['rounds']] == list(SMALL['tune.order'])
  assert found['steps'] == sum(one['steps'] for one in found['rounds']) <= 40
  assert found['headline'].startswith('learning rate 0.01, ') and 'the start' in found['headline']
  page = (tuned / 'report.html').read_text()
  assert (
    all(str(markupsafe.escape(one['move'])) in page for one in found['rounds'])
    and page.count('<svg') == 2
  )
  assert (tuned / 'export' / 'adapter_model.safetensors').exists()
  scope = {}
  exec((tuned / 'winner.py').read_text(), scope)
  config = scope['get_config']()
  assert config.optim.weight_decay == found['values']['optim.weight_decay']
  assert config.tune == settings.keys.defaults().tune
  assert start.start(small(), str(tuned)) == 0
  assert 'nothing to do' in capsys.readouterr().out


@pytest.mark.slow
def test_interrupted_it_ends_as_if_undisturbed(
  tuned, small, tmp_path, monkeypatch, assert_same_export
):
  """Stopped in the first round and in the second, and given a larger budget in between."""
  folder = tmp_path / 'w'
  stops, steps = [4, 17], 0
  advance = runs.Runs.advance

  class Stopped:
    def __enter__(self):
      return lambda: 75 if stops and steps >= stops[0] else 0

    def __exit__(self, *_):
      pass

  def counted(self, states, begin, end, cursor, seen, stop):
    def also(step, losses):
      nonlocal steps
      seen(step, losses)
      steps += 1

    return advance(self, states, begin, end, cursor, also, stop)

  monkeypatch.setattr(runs.Runs, 'advance', counted)
  monkeypatch.setattr(sweeps.entry, 'interruptible', Stopped)
  assert start.start(small(**{'tune.steps': 16}), str(folder)) == 75
  stops.pop(0)
  assert start.start(small(**{'tune.steps': 16}), str(folder)) == 0
  assert len(result(folder)['rounds']) == 1 and 'steps are left' in result(folder)['ended']
  assert start.start(small(), str(folder)) == 75
  stops.pop(0)
  assert start.start(small(), str(folder)) == 0
  mine, theirs = result(folder), result(tuned)
  free = ('minutes', 'headline')  # which names them
  assert all(mine[name] == theirs[name] for name in theirs if name not in free)
  assert_same_export(folder, tuned)


@pytest.mark.parametrize(
  'values, message',
  [
    ({'tune.steps': 0}, 'tune.steps and tune.minutes are both 0; give a budget'),
    ({'tune.steps': -1}, 'tune.steps is -1; it must be at least 0'),
    ({'tune.steps': 14}, r'the budget \(tune.steps 14, .* the first round takes up to 15 steps'),
    ({'data.valid': 0.0}, 'data.valid is 0; candidates are judged'),
    ({'model': '', 'data.text': 'text'}, 'model is empty; a sweep tunes a pretrained model'),
    ({'optim.average': 0.9}, 'optim.average is set, which runs side by side cannot have'),
    ({'sweep.space': ('optim.lr 1e-3, 1e-2',)}, 'sweep.space is set, and tune searches'),
    ({'sweep.seeds': 1}, 'sweep.seeds is 1, and a gain must be larger than what seeds move'),
    ({'tune.order': ()}, 'tune.order is empty; name keys: optim.lr'),
    ({'tune.order': ('train.steps',)}, "tune.order names 'train.steps'; choose from optim.lr"),
    ({'tune.order': ('method.rank',) * 2}, 'tune.order names method.rank too often'),
    ({'tune.order': ('method.rank',), 'method.name': 'ia3'}, 'names nothing that ia3 and adamw'),
  ],
)
def test_bad_input_is_one_line(small, tmp_path, values, message):
  with pytest.raises(InputError, match=message) as caught:
    start.start(small(**values), str(tmp_path / 'w'))
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'w').exists()


def test_a_setting_that_never_moved_is_that_of_the_start():
  assert finish.source([SAME, STAYS]) == (0, 'default')
  assert finish.source([BETTER, SAME]) == (0, 'best')
  assert finish.final([SAME]) == SAME.before and finish.final([BETTER]) == BETTER.after
