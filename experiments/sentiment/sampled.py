"""Continuations of a language model: drawn, scored, and how far their policy is from another."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.sentiment.judge import Opening, encoded
from jaxtune import adapt, data, losses, models, train
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params


class Policy(NamedTuple):
  """A language model with its tokenizer; its adapters, if it had any, are multiplied out."""

  model: ModelSpec
  params: Params
  tok: data.Tokenizer


class Continued(NamedTuple):
  """One opening's continuations.

  Attributes:
    row: of the opening.
    texts: of the continuations, K.
    scores: their rewards, float32 `[K]`.
    tokens: prompt and continuation, with the token that ended it.
    lengths: of the prompt, in tokens.
  """

  row: int
  texts: list[str]
  scores: np.ndarray
  tokens: list[list[int]]
  length: int


def merged(model: ModelSpec, params: Params, tok: data.Tokenizer) -> Policy:
  """A policy that generates as fast as its base."""
  return Policy(model, jax.jit(adapt.merge)(params), tok)


def continued(
  policy: Policy,
  openings: Sequence[Opening],
  judge: train.Reward,
  *,
  samples: int,
  max_tokens: int,
  seed: int,
  batch_size: int,
  start: int = 0,
) -> Iterator[list[Continued]]:
  """The continuations of `batch_size // samples` openings at a time, from opening `start` on.

  An opening's draws follow from the seed and its row alone.

  Raises:
    InputError: fewer than two samples, or more than a batch.
  """
  if not 2 <= samples <= batch_size:
    raise InputError(f'samples is {samples}; it must be in [2, {batch_size}], the batch size')
  prompts = [example['tokens'].tolist() for example in encoded(policy.tok, [*openings]).examples]
  step = batch_size // samples
  for first in range(start, len(prompts), step):
    rows = [row for row in range(first, min(first + step, len(prompts))) for _ in range(samples)]
    draws = [
      draw
      for row in rows[::samples]
      for draw in (np.random.SeedSequence([seed, row]).generate_state(samples) >> 1).tolist()
    ]
    answers = models.generate(
      policy.model,
      policy.params,
      [prompts[row] for row in rows],
      max_tokens=max_tokens,
      sampling=models.Sampling(temperature=1.0),
      seed=draws,
      eos=policy.tok.special.ends,
    )
    texts = policy.tok.encoder.decode_batch([list(answer.tokens) for answer in answers])
    scores = judge(
      [openings[row]['prompt'] for row in rows], texts, [openings[row] for row in rows]
    )
    ends = [[] if answer.end is None else [answer.end] for answer in answers]
    tokens = [
      [*prompts[row], *answer.tokens, *end]
      for row, answer, end in zip(rows, answers, ends, strict=True)
    ]
    yield [
      Continued(
        rows[at],
        texts[at : at + samples],
        np.array(scores[at : at + samples], np.float32),
        tokens[at : at + samples],
        len(prompts[rows[at]]),
      )
      for at in range(0, len(rows), samples)
    ]


def divergence(policy: Policy, base: Params, found: Sequence[Continued], width: int) -> np.ndarray:
  """`log p(continuation) - log p_base(continuation)` in nats, `[N, K]`.

  Its mean over the policy's own continuations estimates KL(policy || base) of a whole sequence.

  Args:
    policy: that drew the continuations.
    base: parameters of the same model.
    found: the continuations.
    width: tokens of the longest.
  """
  rows = []
  for one in found:
    examples: list[Any] = [
      {'tokens': np.array(row, np.int32), 'supervised': np.arange(len(row)) >= one.length}
      for row in one.tokens
    ]
    (batch,) = data.eval_batches(examples, len(examples), max_length=width)
    own, other = (_log_probs(policy.model, params, batch) for params in (policy.params, base))
    rows.append(np.asarray(own - other))
  return np.stack(rows)


@functools.partial(jax.jit, static_argnames='model')
def _log_probs(model: ModelSpec, params: Params, batch: Any) -> jax.Array:
  return losses.log_probs(model, params, batch)[0]
