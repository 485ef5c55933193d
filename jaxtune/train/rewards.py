"""How good an answer is: rules that can be checked, and models that judge."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxtune.data.by_length import by_length
from jaxtune.data.encode import tokenize
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

# `(prompts, completions, records) -> one number each`, greater is better. Prompts are texts, and
# records what the prompts came from, with all of their columns.
Reward = Callable[[list[str], list[str], list[Mapping[str, Any]]], Sequence[float]]


def exact_match(field: str = 'answer', pattern: str | None = None) -> Reward:
  r"""1 where a completion is the record's `field`, as text without spaces around it, else 0.

  Args:
    field: of the record.
    pattern: a regular expression with a group for the answer, as `r'answer is (\S+)'`; its last
      match counts. None for the whole completion.

  Raises:
    InputError: a pattern that is none, or has no group; when called, a record without the field.
  """
  compiled = None if pattern is None else _compiled(pattern, groups=1)

  def reward(prompts: list[str], completions: list[str], records: Any) -> list[float]:
    found = []
    for text, record in zip(completions, records, strict=True):
      if field not in record:
        raise InputError(
          f'the reward compares with {field!r}, but a record has {", ".join(record)} only'
        )
      said = [text] if compiled is None else [m.group(1) or '' for m in compiled.finditer(text)]
      found.append(float(bool(said) and said[-1].strip() == str(record[field]).strip()))
    return found

  return reward


def matches(pattern: str) -> Reward:
  """1 where the regular expression is found in a completion, else 0.

  Raises:
    InputError: no regular expression.
  """
  compiled = _compiled(pattern)
  return lambda prompts, completions, records: [
    float(compiled.search(text) is not None) for text in completions
  ]


def near_length(words: int) -> Reward:
  """`-|n / words - 1|` of the n words of a completion: 0 at best.

  Raises:
    InputError: fewer than one word.
  """
  if words < 1:
    raise InputError(f'near_length: words is {words}; it must be at least 1')
  return lambda prompts, completions, records: [
    -abs(len(text.split()) / words - 1) for text in completions
  ]


def log_odds(
  model: ModelSpec,
  params: Params,
  encoder: tokenizers.Tokenizer,
  label: int,
  *,
  max_length: int,
  batch_size: int = 64,
) -> Reward:
  """`log p(label) - log(1 - p(label))` in nats, by a classifier of prompt and completion together.

  Unbounded, and of the same scale as the log-probabilities of a policy: a probability saturates,
  and then answers that all convince are no longer told apart.

  Args:
    model: a `ModelSpec` of the task `classification`.
    params: its parameters; any weight may be a weight leaf.
    encoder: its tokenizer.
    label: the number of the class that is wanted.
    max_length: tokens that it reads; longer texts are cut at the right, as in its training.
    batch_size: texts at a time.

  Raises:
    InputError: a model that does not classify, or has no such class.
  """
  outputs = getattr(model.config, 'outputs', 0)
  if model.task != 'classification' or not 0 <= label < outputs:
    raise InputError(
      f'the label {label} is asked of a model for {model.task} with {outputs} outputs; '
      'take a classifier and one of its classes'
    )

  @jax.jit
  def score(params: Params, batch: Any) -> jax.Array:
    nats = jax.nn.log_softmax(
      model.apply(params, batch['tokens'], batch['mask']).astype(jnp.float32)
    )
    others = jnp.where(jnp.arange(outputs)[None] == label, -jnp.inf, nats)
    return nats[:, label] - jax.nn.logsumexp(others, axis=-1)

  def reward(prompts: list[str], completions: list[str], records: Any) -> list[float]:
    texts = [before + after for before, after in zip(prompts, completions, strict=True)]
    ids = tokenize(encoder, texts, max_length)[0]
    examples = [{'tokens': np.array(row, np.int32)} for row in ids]
    found = np.zeros(len(texts), np.float32)
    for places, batch in by_length(examples, min(batch_size, len(texts)), limit=max_length):
      found[places] = np.asarray(score(params, batch))[: len(places)]
    return found.tolist()

  return reward


def checked(
  name: str, reward: Reward, prompts: list[str], completions: list[str], records: Any
) -> np.ndarray:
  """The rewards of these completions, float32 `[n]`.

  Raises:
    InputError: not one finite number for each.
  """
  given = list(reward(prompts, completions, records))
  if len(given) != len(completions):
    raise InputError(
      f'the reward {name!r} gave {len(given)} numbers for {len(completions)} completions; '
      'it must give one each'
    )
  for value, text in zip(given, completions, strict=True):
    try:
      finite = math.isfinite(value)
    except TypeError:
      finite = False
    if not finite:
      raise InputError(
        f'the reward {name!r} of {text[:40]!r} is {value!r}; it must be a finite number'
      )
  return np.array(given, np.float32)


def _compiled(pattern: str, groups: int = 0) -> re.Pattern[str]:
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise InputError(f'{pattern!r} is no regular expression: {error}; mend it') from None
  if compiled.groups < groups:
    raise InputError(f'{pattern!r} has no group (...) for the answer; put one around it')
  return compiled
