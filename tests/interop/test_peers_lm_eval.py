"""lm-evaluation-harness measures a tiny model through the adapter; the oracle is its logits."""

import json

import jax
import numpy as np
import pytest
import tokenizers
from scipy import special

from jaxtune import data, models
from jaxtune.typing import InputError

pytest.importorskip('lm_eval')
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('default')]

CHAT = (
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}'
  '{% if add_generation_prompt %}<assistant>{% endif %}'
)
CITIES = [
  {'question': 'Where is the tower', 'choices': ['Paris', 'Oslo'], 'answer': 0},
  {'question': 'Where is the fjord', 'choices': ['in Rome', 'Oslo'], 'answer': 1},
  {'question': 'Where is the Tiber', 'choices': ['Oslo', 'Rome, Italy'], 'answer': 1},
]


@pytest.fixture(scope='module')
def made():
  """A model that reads 24 tokens, its parameters, its tokenizer, and its logits compiled."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=['<end>'],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator([json.dumps(CITIES)] * 3, trainer)
  config = models.DecoderConfig(
    vocabulary=tokenizer.get_vocab_size(),
    width=16,
    hidden=24,
    layers=2,
    heads=2,
    positions=24,
    init_scale=0.4,
  )
  model = models.decoder(config)
  return model, model.init(jax.random.key(0)), tokenizer, jax.jit(model.apply)


@pytest.fixture(scope='module')
def adapter(made):
  from jaxtune.interop.lm_eval import LanguageModel

  return LanguageModel(*made[:3], data.SpecialTokens(eos=0, chat_template=CHAT), batch_size=2)


def requests(kind, *arguments):
  from lm_eval.api.instance import Instance

  return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def log_p(made, ids):
  """`log p(next token)` `[T, V]` after each token, in float64."""
  ahead = np.zeros((1, 24), np.int32)  # what comes later changes nothing; one shape compiles once
  ahead[0, : len(ids)] = ids
  logits = np.asarray(made[3](made[1], ahead), np.float64)[0, : len(ids)]
  return special.log_softmax(logits, axis=1)


def test_likelihood_and_whether_it_is_greedy(made, adapter):
  tokenizer = made[2]
  context = 'Where is'
  before = tokenizer.encode(context).ids
  best = tokenizer.decode([int(log_p(made, before)[-1].argmax())])
  given = [(context, ' the tower'), (context + ' ', 'Oslo'), ('', 'Paris'), (context, best)]
  found = adapter.loglikelihood(requests('loglikelihood', *given))
  for (before, scored), (nats, greedy) in zip(given, found, strict=True):
    ids = tokenizer.encode(before + scored).ids
    start = len(tokenizer.encode(before.rstrip()).ids)
    if not before:
      ids, start = [0, *ids], 1
    wanted = log_p(made, ids)[np.arange(start - 1, len(ids) - 1), ids[start:]]
    assert nats == pytest.approx(wanted.sum(), rel=1e-4)
    assert greedy == all(log_p(made, ids)[t - 1].argmax() == ids[t] for t in range(start, len(ids)))


def test_a_context_that_is_too_long_loses_its_beginning(made, adapter):
  long, scored = 'tower ' * 30 + 'Where is', ' Oslo'
  ((nats, _),) = adapter.loglikelihood(requests('loglikelihood', (long, scored)))
  ids = made[2].encode(long + scored).ids[-24:]
  start = 24 - (len(made[2].encode(long + scored).ids) - len(made[2].encode(long).ids))
  wanted = log_p(made, ids)[np.arange(start - 1, 23), ids[start:]]
  assert nats == pytest.approx(wanted.sum(), rel=1e-4)


def test_rolling_likelihood_scores_every_token_once(made, adapter):
  texts = [('Where is the tower',), (json.dumps(CITIES),)]
  short, long = adapter.loglikelihood_rolling(requests('loglikelihood_rolling', *texts))
  ids = [0, *made[2].encode(texts[0][0]).ids]
  wanted = log_p(made, ids)[np.arange(len(ids) - 1), ids[1:]].sum()
  assert short == pytest.approx(wanted, rel=1e-4)
  ids = [0, *made[2].encode(texts[1][0]).ids]
  total, predicted = 0.0, 1
  while predicted < len(ids):  # each window is full, the last one too
    end = min(predicted + 23, len(ids)) if predicted > 1 else 24
    window = ids[max(0, end - 24) : end]
    scores = log_p(made, window)[np.arange(len(window) - 1), window[1:]]
    total += scores[-(end - predicted) :].sum()
    predicted = end
  assert long == pytest.approx(total, rel=1e-4)


def test_what_is_written_ends_where_the_task_says(made, adapter):
  context, tokenizer = 'Where is the', made[2]
  ids = tokenizer.encode(context).ids
  for _ in range(6):
    ids.append(int(log_p(made, ids)[-1].argmax()))
  wanted = tokenizer.decode(ids[-6:])
  given = [(context, {'until': [], 'max_gen_toks': 6}), (context, {'until': [wanted[3:5]]})]
  found = adapter.generate_until(requests('generate_until', *given))
  assert found == [wanted, wanted[: wanted.index(wanted[3:5])]]
  with pytest.raises(InputError, match="generation_kwargs has 'num_beams'; known: until, max_gen"):
    adapter.generate_until(requests('generate_until', (context, {'until': [], 'num_beams': 3})))


def test_the_harness_itself_measures_a_task(made, adapter, tmp_path):
  import lm_eval

  (tmp_path / 'cities.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in CITIES))
  task = {
    'task': 'cities',
    'dataset_path': 'json',
    'dataset_kwargs': {
      'data_files': {'test': str(tmp_path / 'cities.jsonl')},
      'cache_dir': str(tmp_path / 'cache'),
    },
    'test_split': 'test',
    'output_type': 'multiple_choice',
    'doc_to_text': '{{question}}?',
    'doc_to_choice': 'choices',
    'doc_to_target': 'answer',
    'metric_list': [{'metric': 'acc'}],
  }
  found = lm_eval.simple_evaluate(adapter, tasks=[task], bootstrap_iters=0, log_samples=False)

  def score(question, choice):
    ids, before = (made[2].encode(text).ids for text in (f'{question}? {choice}', f'{question}?'))
    return log_p(made, ids)[np.arange(len(before) - 1, len(ids) - 1), ids[len(before) :]].sum()

  right = [
    int(np.argmax([score(row['question'], c) for c in row['choices']]) == row['answer'])
    for row in CITIES
  ]
  assert found['results']['cities']['acc,none'] == pytest.approx(np.mean(right))


def test_chats_go_through_the_models_template(adapter):
  messages = [{'role': 'user', 'content': 'hi'}]
  assert adapter.apply_chat_template(messages) == '<user>hi<assistant>'
  assert adapter.apply_chat_template(messages, add_generation_prompt=False) == '<user>hi'
  assert adapter.chat_template(True) == CHAT and adapter.chat_template(False) is None


def test_models_that_the_harness_cannot_use(made):
  from jaxtune.interop.lm_eval import LanguageModel

  model, params, tokenizer, _ = made
  with pytest.raises(InputError, match='names neither bos nor eos'):
    LanguageModel(model, params, tokenizer, data.SpecialTokens())
  classifier, tuned = models.classifier(jax.random.key(0), model, params, 2)
  with pytest.raises(InputError, match='for classification; the harness needs a causal'):
    LanguageModel(classifier, tuned, tokenizer, data.SpecialTokens(eos=0))
