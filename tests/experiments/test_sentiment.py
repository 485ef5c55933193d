"""Continuations of openings judged by a classifier: written, resumed, and compared with a base."""

import importlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags

from experiments import tuned
from experiments.sentiment import judge, sampled
from jaxtune import interop
from jaxtune.typing import InputError


def imported(name):
  """A script, and the defaults of its flags by their names in it."""
  before = set(flags.FLAGS)
  module = importlib.import_module(f'experiments.{name}')
  holders = {n: h for n, h in vars(module).items() if isinstance(h, flags.FlagHolder)}
  defaults = {name: holder.default for name, holder in holders.items()}
  for flag in set(flags.FLAGS) - before:  # other scripts have flags of the same names
    delattr(flags.FLAGS, flag)
  return module, defaults


@pytest.fixture(scope='module')
def scripts():
  return {name: imported(name) for name in ('continuations', 'sentiment_score')}


@pytest.fixture
def call(scripts, monkeypatch):
  """`call('continuations', workdir=...)`: the exit code of its main."""

  def run(name, **values):
    module, defaults = scripts[name]
    given = defaults | {key.upper(): value for key, value in values.items()}
    assert given.keys() == defaults.keys()
    for key, value in given.items():
      monkeypatch.setattr(module, key, SimpleNamespace(value=value))
    return module.main()

  return run


@pytest.fixture
def options(files, finished):
  return {
    'classifier': str(finished),
    'model': str(files / 'decoder'),
    'rows': 6,
    'held_out': 4,
    'samples': 2,
    'words': 3,
    'max_tokens': 5,
    'batch_size': 4,
  }


def rows(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_openings_did_not_tune_the_classifier(finished):
  run = tuned.open_run(str(finished))
  found = judge.openings(run, 3, 5)
  prompts = [row['prompt'] for part in found.values() for row in part]
  assert len(set(prompts)) == 10 and all(len(text.split()) == 3 for text in prompts)
  with pytest.raises(InputError, match='100 openings of 3 words are asked for, and the test split'):
    judge.openings(run, 3, 100)
  with pytest.raises(InputError, match="there is no class 'best'; there are bad, good"):
    judge.reward(str(finished), 'best')


def test_best_and_worst_continuations_are_pairs(call, options, tmp_path, capsys):
  assert call('continuations', workdir=str(tmp_path / 'a'), **options) == 0
  pairs, done = rows(tmp_path / 'a/pairs.jsonl'), rows(tmp_path / 'a/continuations.jsonl')
  assert len(done) == 6 and len(rows(tmp_path / 'a/held_out.jsonl')) == 4
  assert [row['prompt'] for row in done] == [
    row['prompt'] for row in rows(tmp_path / 'a/prompts.jsonl')
  ]
  reward = judge.reward(options['classifier'])
  for row in done:
    scores = reward([row['prompt']] * 2, row['completions'], [{}] * 2)
    np.testing.assert_allclose(scores, row['scores'], rtol=1e-4, atol=1e-5)
  for pair in pairs:
    assert pair['score_chosen'] > pair['score_rejected'] and pair['chosen'] != pair['rejected']
  assert f'{len(pairs)} pairs in' in capsys.readouterr().out

  # Stopped after the first batch, the same command ends with the same files.
  (tmp_path / 'b').mkdir()
  for name in ('continuations.json', 'continuations.jsonl'):
    text = (tmp_path / 'a' / name).read_text()
    cut = ''.join(text.splitlines(keepends=True)[:2]) if name.endswith('l') else text
    (tmp_path / 'b' / name).write_text(cut)
  assert call('continuations', workdir=str(tmp_path / 'b'), **options) == 0
  for file in ('pairs.jsonl', 'continuations.jsonl', 'prompts.jsonl'):
    assert (tmp_path / 'b' / file).read_bytes() == (tmp_path / 'a' / file).read_bytes()
  with pytest.raises(InputError, match='holds continuations with --samples=2'):
    call('continuations', workdir=str(tmp_path / 'b'), **{**options, 'samples': 3})


def test_the_distance_of_a_policy_from_its_base(files):
  model, base = interop.load(files / 'decoder')
  tok = interop.tokenizer(files / 'decoder')
  params = jax.tree.map(lambda x: 1.1 * x, base)
  openings = [{'prompt': 'film 1'}, {'prompt': 'really good'}]
  (found,) = sampled.continued(
    sampled.Policy(model, params, tok),
    openings,
    lambda prompts, completions, records: [len(text) for text in completions],
    samples=2,
    max_tokens=4,
    seed=0,
    batch_size=4,
  )
  ratios = sampled.divergence(sampled.Policy(model, params, tok), base, found, 16)
  apply = jax.jit(model.apply)
  for one, row in zip(found, ratios, strict=True):
    for tokens, ratio in zip(one.tokens, row, strict=True):
      padded = np.array([tokens + [0] * (16 - len(tokens))])
      own, other = (jax.nn.log_softmax(apply(p, padded)[0]) for p in (params, base))
      want = sum(
        float(own[t - 1, tokens[t]] - other[t - 1, tokens[t]])
        for t in range(one.length, len(tokens))
      )
      assert ratio == pytest.approx(want, abs=1e-4)


@pytest.mark.slow
def test_a_tuned_policy_beside_its_base(call, configure, launch, options, tmp_path, capsys):
  folder = str(tmp_path / 'made')
  assert call('continuations', workdir=folder, **options) == 0
  run = tmp_path / 'tuned'
  assert launch(configure('causal_lm', {'train.steps': 2}), run) == 0
  assert (
    call(
      'sentiment_score',
      classifier=options['classifier'],
      openings=f'{folder}/held_out.jsonl',
      workdir=[str(run)],
      samples=2,
      max_tokens=5,
      batch_size=4,
      output=str(tmp_path / 'score.json'),
    )
    == 0
  )
  found = json.loads((tmp_path / 'score.json').read_text())
  assert found['openings'] == 4 and found['difference'][0] < found['difference'][1]
  assert '1 runs, 4 openings x 2: score' in capsys.readouterr().out
