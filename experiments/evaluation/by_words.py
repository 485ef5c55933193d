"""A language model asked for labels: the answer is the label whose word is likeliest."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from experiments import sources
from experiments.evaluation import by_head
from experiments.evaluation.batches import each
from experiments.evaluation.measured import Measured
from experiments.tuned import Tuned
from jaxtune import data
from jaxtune.data import few_shot
from jaxtune.data.batch import Batch
from jaxtune.data.by_length import padded_length
from jaxtune.models import likelihood
from jaxtune.typing import InputError

WITHOUT_CONTENT = ('N/A', '[MASK]')  # two of the three texts of Zhao et al. 2021; '' is no text


def measure(
  run: Tuned, rows: Sequence[sources.Record], train: Sequence[sources.Record]
) -> Measured:
  """Accuracy, F1 and Matthews' correlation of the likeliest words; `train` gives the examples."""
  config, c = run.config, run.config.evaluate
  field, text = config.data.label, config.data.text
  words = label_words(c.words) or {name: name for name in data.label_names(train, field)}
  names = tuple(words)
  labels = few_shot.label_places(rows, field, names)
  shown: list[tuple[sources.Record, str]] = []
  if c.shots:
    candidates = few_shot.label_places(train, field, names)
    chosen = few_shot.draw_examples(candidates, names, c.shots, c.seed)
    shown = [(train[i], names[candidates[i]]) for i in chosen]
  empty = [{**rows[0], text: value} for value in WITHOUT_CONTENT if c.score == 'calibrated']
  speaks = c.chat and run.tok.special.chat_template
  asked = few_shot.prompts(
    [*rows, *empty],
    shown,
    run.tok.encoder,
    words,
    template=c.prompt,
    instruction=c.instruction,
    text=text,
    max_length=config.data.max_length,
    chat=functools.partial(data.render_chat, run.tok.special) if speaks else None,
    positions=run.model.config.positions,
  )
  nats = word_nats(run, asked)
  if c.score == 'per_token':
    nats = nats / [len(word) for word in asked.words]
  log_p = calibrate(special.log_softmax(nats, axis=1), len(rows), c.score)
  remarks = [f'{len(shown)} examples shown, {len(asked.prefix):,} tokens shared by all prompts']
  if asked.truncated:
    remarks.append(
      f'{asked.truncated:,} texts longer than {config.data.max_length} tokens were cut'
    )
  return by_head.chosen([row[text] for row in rows], labels, log_p, names, remarks)


def calibrate(log_p: np.ndarray, rows: int, score: str) -> np.ndarray:
  """Log-probabilities `[N, C]` of `rows` rows, over those that the labels have whatever the text.

  `p(label | text) / p(label)`, normalized; p(label) is the mean over texts without content, which
  lie behind the rows (Zhao et al. 2021, arXiv:2102.09690), or over the rows themselves (Zhou et al.
  2023, arXiv:2309.17249).
  """
  if score not in ('calibrated', 'batch_calibrated'):
    return log_p
  given = log_p[rows:] if score == 'calibrated' else log_p
  prior = special.logsumexp(given, axis=0) - np.log(len(given))
  return special.log_softmax(log_p[:rows] - prior, axis=1)


def word_nats(run: Tuned, asked: few_shot.Prompts) -> np.ndarray:
  """`log p` of each word behind each prompt, in nats, float64 `[N, C]`."""
  longest = max(map(len, asked.words))
  words = np.zeros((len(asked.words), longest), np.int32)
  mask = np.arange(longest) < np.array([len(word) for word in asked.words])[:, None]
  words[mask] = np.concatenate(asked.words)
  rest = padded_length(max(len(row['tokens']) for row in asked.rows))
  size = len(asked.prefix) + rest + longest
  remember = functools.partial(likelihood.remember, run.model, size=size)
  cache = jax.jit(remember)(run.params, jnp.asarray(asked.prefix))
  score = jax.jit(functools.partial(likelihood.word_likelihood, run.model))

  def compute(batch: Batch) -> jax.Array:
    return score(run.params, cache, batch['tokens'], batch['mask'], words, mask)

  return each(run, asked.rows, compute).astype(np.float64)


def label_words(text: str) -> Mapping[str, str]:
  """`'0=negative,1=positive'` as a mapping; empty for none.

  Raises:
    InputError: a part without `=`, or fewer than two labels.
  """
  words: dict[str, str] = {}
  for part in filter(None, text.split(',')):
    label, sign, word = part.partition('=')
    if not sign or not label.strip() or label.strip() in words:
      raise InputError(
        f'evaluate.words is {text!r}; give each label one word, as in 0=negative,1=positive'
      )
    words[label.strip()] = word.strip()
  if len(words) == 1:
    raise InputError(f'evaluate.words is {text!r}; give at least two labels a word')
  return words
