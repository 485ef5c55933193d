"""Prompt tuning: virtual tokens before the text, whose embeddings alone are trained.

Lester et al. 2021, arXiv:2104.08691.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.adapt.adapted import HEAD, Adapted, train_also
from jaxtune.typing import InputError, Key, Params

STARTS = ('vocabulary', 'random')
_SAMPLES = 4096


def prompt(
  key: Key,
  params: Params,
  tokens: int = 20,
  start: str | Sequence[int] = 'vocabulary',
  *,
  also: str | None = HEAD,
) -> Adapted:
  """Puts P virtual tokens before every text and trains their embeddings, `[P, D]`.

  `h = model([P; E(x)])` of section 2, with attention to all of P from every token of the text, and
  the text's positions counted on from P; losses and outputs are those of the text's tokens. A
  classifier that looks at the first token of a text looks at the prompt's (so does PEFT's). Rows of
  the prompt are scaled as the embedding's are (Gemma: by sqrt(D)); PEFT keeps them as they are
  after that, which its files allow for. In packed rows every document of a decoder sees the prompt,
  as it would alone.

  The first forward pass is not the base model's: nothing trained takes the prompt's place.

  Args:
    key: for the start.
    params: of a built-in decoder or encoder.
    tokens: P, at least 1; they take places of the model's context.
    start: 'vocabulary' for rows of words drawn from all, which section 3.2 finds better than
      'random': normal with the deviation of the embedding (the paper's is uniform within 0.5 and
      PEFT's normal with 1, whatever the embedding's size); or token ids, as of the task in words or
      the names of the classes, repeated or cut to P.
    also: regular expression over parameters to train as they are, by default a fresh head.

  Raises:
    InputError: no built-in model, or one that has a prompt; no tokens, or an unknown start.
  """
  check_built_in(params, 'prompt')
  rows = _start(key, params['embed']['tokens'], check_tokens(tokens, 'prompt'), start)
  return with_virtual(params, 'prompt', {'tokens': rows}, also)


def _start(key: Key, table: Any, tokens: int, start: str | Sequence[int]) -> jax.Array:
  """The first `[P, D]`, in float32."""
  words, width = table.shape
  if isinstance(start, str):
    if start not in STARTS:
      raise InputError(
        f'prompt: start is {start!r}; it must be {" or ".join(map(repr, STARTS))} or a list of '
        'token ids'
      )
    if start == 'random':
      some = ops.take(table, jnp.arange(0, words, max(1, words // _SAMPLES)))
      return jnp.std(some.astype(jnp.float32)) * jax.random.normal(key, (tokens, width))
    ids = jax.random.randint(key, (tokens,), 0, words)
  else:
    given = [int(token) for token in start]
    if not given or not 0 <= min(given) <= max(given) < words:
      raise InputError(
        f'prompt: start is {given}; it must name at least one token from 0 to {words - 1}'
      )
    ids = jnp.asarray((given * -(-tokens // len(given)))[:tokens])
  return ops.take(table, ids).astype(jnp.float32)


def check_tokens(tokens: int, method: str) -> int:
  """Refuses a number of virtual tokens below one."""
  if tokens < 1:
    raise InputError(f'{method}: tokens is {tokens}; it must be at least 1')
  return tokens


def check_built_in(params: Params, method: str) -> str:
  """The name of the model's one stack of layers, which sees virtual tokens.

  Raises:
    InputError: the parameters are of another kind of model.
  """
  stacks = [name for name in ('decoder', 'encoder') if name in params]
  embed = params.get('embed')
  known = isinstance(embed, Mapping) and 'tokens' in embed and 'encoder_bias' not in params
  if len(stacks) != 1 or not known:
    raise InputError(
      f'{method} puts virtual tokens before texts, which only the built-in decoders and encoders '
      'know of; choose a method of weights, such as lora'
    )
  return stacks[0]


def with_virtual(params: Params, name: str, entry: Params, also: str | None) -> Adapted:
  """The parameters with an entry of that name, which trains.

  Raises:
    InputError: they have one.
  """
  if name in params:
    raise InputError(f'{name}: the parameters have a {name} already; start from those of the base')
  before = params.rules if isinstance(params, Adapted) else ((r'', False),)
  rules = [(rf'^{name}/', True), *([] if also is None else [(also, True)])]
  return train_also(Adapted({**params, name: entry}, before), rules)
