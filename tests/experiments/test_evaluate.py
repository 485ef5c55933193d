"""Models measured as they are: labels by the likelihood of words, texts, outputs; the files."""

import csv
import io
import json
import math
import shutil

import jax
import numpy as np
import pytest
from scipy import special

from experiments import sources
from experiments.evaluation import by_writing, start
from jaxtune import interop, models
from jaxtune.data import few_shot
from jaxtune.report import generated
from jaxtune.typing import InputError

WORDS = {'bad': 'awful', 'good': 'really lovely'}
ASK = {
  'evaluate.words': 'bad=awful,good=really lovely',
  'evaluate.prompt': 'A {text}.\nIt is',
  'evaluate.rows': 6,
  'data.max_length': 40,
  'eval.batch_size': 4,
}


@pytest.fixture(scope='module')
def decoder(files, tmp_path_factory):
  """The folder of a tiny language model with room for examples, and a chat template."""
  folder = tmp_path_factory.mktemp('evaluated') / 'decoder'
  tokenizer = interop.load_tokenizer(files / 'decoder')
  config = models.DecoderConfig(
    vocabulary=tokenizer.get_vocab_size(),
    width=32,
    hidden=48,
    layers=2,
    heads=4,
    positions=160,
    init_scale=0.3,
  )
  model = models.decoder(config)
  interop.save_hf(folder, model, model.init(jax.random.key(3)))
  shutil.copy(files / 'decoder' / 'tokenizer.json', folder)
  template = (
    '{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}'
    '{% if add_generation_prompt %}[assistant]{% endif %}'
  )
  named = {'eos_token': '<|endoftext|>', 'chat_template': template}
  (folder / 'tokenizer_config.json').write_text(json.dumps(named))
  return folder


@pytest.fixture
def measured(decoder, configure, capsys):
  """`measured('classification', values)`: the JSON of the last line, and all that is printed."""

  def run(task, values, **options):
    config = configure(task, {'model': str(decoder), **values})
    capsys.readouterr()
    assert start.start(config, None, **options) == 0
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1]), out

  return run


def held_out(configure, values):
  """The test and training rows of a configuration."""
  splits = sources.read(configure(values=values)).splits
  return splits['test'], splits['train']


@pytest.fixture(scope='module')
def log_p(decoder):
  """`log_p(ids)`: `log p(next token)` `[T, V]` after each token, in float64."""
  model, params = interop.load(decoder)
  apply = jax.jit(model.apply)

  def compute(ids):
    ahead = np.zeros((1, 160), np.int32)  # what comes later changes nothing
    ahead[0, : len(ids)] = ids
    return special.log_softmax(np.asarray(apply(params, ahead), np.float64)[0, : len(ids)], axis=1)

  return compute


@pytest.mark.parametrize(
  'score, chat, shots',
  [
    ('likelihood', False, 0),
    ('per_token', True, 2),
    ('calibrated', False, 2),
    ('batch_calibrated', False, 0),
  ],
)
def test_labels_by_the_likelihood_of_their_words(
  measured, decoder, log_p, configure, tmp_path, score, chat, shots
):
  values = ASK | {'evaluate.score': score, 'evaluate.chat': chat, 'evaluate.shots': shots}
  found, out = measured('classification', values, path=str(tmp_path / 'rows.jsonl'))
  rows, train = held_out(configure, values)
  rows, tokenizer = rows[:6], interop.load_tokenizer(decoder)
  candidates = few_shot.label_places(train, 'label', tuple(WORDS))
  shown = [train[i] for i in few_shot.draw_examples(candidates, tuple(WORDS), shots, 0)]
  gap = '' if chat else ' '

  def prompt(row):
    turns = [f'A {r["text"]}.\nIt is' for r in (*shown, row)]
    answers = [gap + WORDS[r['label']] for r in shown]
    if not chat:
      said = [turn + answer for turn, answer in zip(turns, answers, strict=False)]
      return '\n\n'.join([*said, turns[-1]])
    said = [f'[user]{t}\n[assistant]{a}\n' for t, a in zip(turns, answers, strict=False)]
    return ''.join(said) + f'[user]{turns[-1]}\n[assistant]'

  def answers(row):
    nats = []
    for word in WORDS.values():
      ids, answer = tokenizer.encode(prompt(row)).ids, tokenizer.encode(gap + word).ids
      picked = log_p(ids + answer)[len(ids) - 1 : -1][np.arange(len(answer)), answer]
      nats.append(picked.mean() if score == 'per_token' else picked.sum())
    return special.log_softmax(nats)

  wanted = np.array([answers(row) for row in rows])
  if 'calibrated' in score:
    empty = [{'text': text} for text in ('N/A', '[MASK]')]
    without = np.array([answers(row) for row in (empty if score == 'calibrated' else rows)])
    wanted = special.log_softmax(wanted - np.log(np.exp(without).mean(axis=0)), axis=1)
  lines = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
  assert [line['text'] for line in lines] == [row['text'] for row in rows]
  given = [[line[f'probability {name}'] for name in WORDS] for line in lines]
  np.testing.assert_allclose(given, np.exp(wanted), rtol=1e-3, atol=1e-6)
  right = [tuple(WORDS)[w.argmax()] == row['label'] for w, row in zip(wanted, rows, strict=True)]
  assert found['accuracy'] == pytest.approx(np.mean(right))
  assert found['intervals']['accuracy'][0] <= found['accuracy'] <= found['intervals']['accuracy'][1]
  picked = [w[tuple(WORDS).index(row['label'])] for w, row in zip(wanted, rows, strict=True)]
  assert found['loss'] == pytest.approx(-np.mean(picked), rel=1e-3)
  assert np.sum(found['confusion']) == found['examples'] == 6
  assert found['labels'].keys() == WORDS.keys()
  assert f'{shots} examples shown' in out and 'true, predicted' in out


def test_perplexity_of_texts(measured, decoder, log_p, configure, tmp_path):
  values = {'data.max_length': 12, 'evaluate.rows': 5, 'eval.batch_size': 2}
  found, _ = measured('causal_lm', values, path=str(tmp_path / 'all.json'))
  tokenizer = interop.load_tokenizer(decoder)
  nats, count = 0.0, 0
  for row in held_out(configure, values)[0][:5]:
    ids = [*tokenizer.encode(row['text']).ids, tokenizer.token_to_id('<|endoftext|>')]
    for first in range(0, len(ids) - 1, 11):  # as documents are cut for training
      block = ids[first : first + 12]
      picked = log_p(block)[np.arange(len(block) - 1), block[1:]]
      nats, count = nats - picked.sum(), count + picked.size
  assert found['loss'] == pytest.approx(nats / count, rel=1e-4)
  assert found['perplexity'] == pytest.approx(math.exp(nats / count), rel=1e-3)
  low, high = found['intervals']['perplexity']
  assert low < found['perplexity'] < high and 0 <= found['accuracy'] <= 1
  whole = json.loads((tmp_path / 'all.json').read_text())
  assert whole['scores'] == found and whole['config']['task'] == 'causal_lm'
  assert sum(row['tokens'] for row in whole['rows']) == count


def test_what_is_written_behind_prompts(measured, decoder, log_p, configure, tmp_path):
  values = {
    'data.prompt': '{text} is',
    'data.completion': ' {label}',
    'evaluate.rows': 3,
    'evaluate.new_tokens': 4,
    'evaluate.metrics': 'token_f1, exact_match',
    'eval.batch_size': 2,
  }
  found, _ = measured('causal_lm', values, path=str(tmp_path / 'rows.jsonl'))
  lines = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
  assert found['examples'] == len(lines) == 3 and found['loss'] > 0
  tokenizer = interop.load_tokenizer(decoder)
  for line in lines:
    ids = tokenizer.encode(line['prompt']).ids
    for _ in range(4):
      ids.append(int(log_p(ids)[-1].argmax()))
    assert line['written'] == tokenizer.decode(ids[-4:])
  f1 = [generated.token_f1(line['written'], line['completion']) for line in lines]
  assert found['token_f1'] == pytest.approx(np.mean(f1)) and 'exact_match' in found


def test_a_classifier_of_someone_elses(files, configure, capsys, tmp_path):
  folder = tmp_path / 'classifier'
  model, params = interop.load(files / 'encoder')
  model, params = models.classifier(jax.random.key(0), model, params, 2)
  interop.save_hf(folder, model, params, source=files / 'encoder', labels=('bad', 'good'))
  config = configure(values={'model': str(folder)})
  capsys.readouterr()
  page = tmp_path / 'page.html'
  assert start.start(config, None, path=str(page)) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found['examples'] == 16 and np.sum(found['confusion']) == 16
  assert f'Accuracy {found["accuracy"]:.3f} on 16 examples of the test rows' in page.read_text()


def test_a_tuned_model_by_another_configuration(finished, files, command, configure, capsys):
  config = configure(values={'evaluate.rows': 3})
  capsys.readouterr()
  assert command('evaluate', workdir=finished, config=config, data=files / 'films.csv') == 0
  out = capsys.readouterr().out.splitlines()
  assert out[0] == f'3 examples of {files / "films.csv"}'
  assert json.loads(out[-1])['examples'] == 3


def test_rows_of_a_tuned_model_are_those_of_predict(finished, files, command, tmp_path):
  rows, predicted = tmp_path / 'rows.jsonl', tmp_path / 'predicted.csv'
  assert command('evaluate', workdir=finished, data=files / 'films.csv', output=rows) == 0
  assert command('predict', workdir=finished, input=files / 'films.csv', output=predicted) == 0
  lines = [json.loads(line) for line in rows.read_text().splitlines()]
  table = list(csv.DictReader(io.StringIO(predicted.read_text(), newline='')))
  assert [line['predicted'] for line in lines] == [row['predicted'] for row in table]


def test_a_run_from_before_there_were_these_keys(finished, command, tmp_path, capsys):
  folder = tmp_path / 'run'
  shutil.copytree(finished, folder)
  run = json.loads((folder / 'run.json').read_text())
  del run['config']['evaluate']
  (folder / 'run.json').write_text(json.dumps(run))
  assert command('evaluate', workdir=folder) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1])['examples'] == 16


@pytest.mark.parametrize(
  'values, match',
  [
    ({'evaluate.shots': 60}, 'take 30 rows labelled .* to draw from; ask for fewer shots'),
    ({'evaluate.shots': 20}, r'line \d+ .*the model has 160 positions; show fewer examples'),
    ({'evaluate.words': 'bad=same,good=same'}, "labels 'bad' and 'good'.*are the same tokens"),
    ({'evaluate.words': 'good=fine,so=so'}, "'label' is 'bad', which is none of the labels good"),
    ({'evaluate.words': 'good'}, 'evaluate.words is .*give each label one word, as in 0='),
    ({'evaluate.words': 'good=fine'}, 'at least two labels'),
    ({'evaluate.prompt': '{txt}'}, "asks for the column 'txt'; the columns are text, label"),
    ({'evaluate.score': 'logit'}, 'evaluate.score is .*choose one of likelihood, per_token, cal'),
    ({'evaluate.metrics': 'exact_match'}, 'evaluate.metrics is .*set both, and task to causal_lm'),
    ({'evaluate.metrics': 'meteor'}, "unknown metric 'meteor'; known: exact_match, token_f1, bleu"),
    ({'data.test': 0.0}, 'no test rows are held out'),
    ({'model': ''}, 'model is empty; give one with --config.model'),
    ({'task': 'regression', 'data.label': 'stars'}, 'cannot do without training; train it with'),
  ],
)
def test_what_cannot_be_measured(decoder, configure, values, match):
  with pytest.raises(InputError, match=match) as caught:
    start.start(configure(values={'model': str(decoder), **ASK, **values}), None)
  assert '\n' not in str(caught.value)


def test_an_empty_text(decoder, configure, tmp_path):
  (tmp_path / 'rows.csv').write_text('text,label\na fine film,good\n" ",bad\n')
  config = configure(values={'model': str(decoder), **ASK})
  with pytest.raises(InputError, match="line 3: column 'text' is empty; give it a text"):
    start.start(config, None, data=str(tmp_path / 'rows.csv'))


def test_a_prompt_that_leaves_no_room_to_write(decoder, configure):
  values = {'data.prompt': '{text}' * 20, 'data.completion': 'label', 'data.max_length': 160}
  values |= {'model': str(decoder), 'evaluate.metrics': 'token_f1', 'evaluate.rows': 1}
  with pytest.raises(InputError, match='its prompt has .* tokens, and the model has 160 positions'):
    by_writing.write(start.pretrained(configure('causal_lm', values)), ['film ' * 400])


def test_nothing_to_measure_and_nowhere_to_write():
  with pytest.raises(InputError, match='give the --workdir of a run, or a --config'):
    start.start(None, None)
  with pytest.raises(InputError, match=r'--output=rows.xml: .*\.html, \.json, \.jsonl'):
    start.start(None, None, path='rows.xml')


@pytest.mark.slow
def test_few_shot_smollm2_on_its_first_rows(shell, smollm2, reviews):
  done = shell('evaluate', '--config=configs/few_shot_smollm2.py', '--config.evaluate.rows=32')
  assert done.code == 0, done.err
  found = json.loads(done.out.splitlines()[-1])
  assert found['examples'] == 32
  assert found['accuracy'] == pytest.approx(21 / 32, abs=1 / 32)
  assert found['loss'] == pytest.approx(0.6796, abs=2e-3)


@pytest.mark.slow
def test_perplexity_smollm2_on_its_first_rows(shell, smollm2, reviews):
  done = shell('evaluate', '--config=configs/perplexity_smollm2.py', '--config.evaluate.rows=8')
  assert done.code == 0, done.err
  found = json.loads(done.out.splitlines()[-1])
  assert found['loss'] == pytest.approx(3.4928, abs=2e-3)
  assert found['perplexity'] == pytest.approx(math.exp(found['loss']))
