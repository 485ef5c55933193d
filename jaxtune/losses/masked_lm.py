"""Cross-entropy of tokens that are hidden from the model."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import ops
from jaxtune.losses.log_probs import around, features_of
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.measured import measured_perplexity
from jaxtune.typing import Batch, InputError, Key, Params


class Masked(NamedTuple):
  """What the model sees in place of the tokens, int32 `[B, T]`, and which it has to find, bool."""

  tokens: jax.Array
  hidden: jax.Array


def mask_tokens(
  key: Key,
  batch: Batch,
  mask_token: int,
  vocabulary: int,
  probability: float = 0.15,
  whole_word: bool = False,
) -> Masked:
  """Hides tokens at random: of those 80% become the mask token, 10% any token, 10% stay.

  BERT, Devlin et al. 2018, arXiv:1810.04805, section 3.1 and appendix A.1. Each token is drawn by
  itself with `probability`; with `whole_word` each word, whose tokens share the draw (and not what
  becomes of them, as in BERT's own code; transformers then masks all). Draws come from the key and
  the row: a text is masked alike in every batch, place and process, but packed rows are others.

  Args:
    key: the same key hides the same tokens.
    batch: `tokens` int32 `[B, T]`; if present `mask` bool, `segments` int32, and `words` int32
      `[B, T]`, the number of each token's word, or -1 for a special token, which is never hidden.
    mask_token: the id of `[MASK]`.
    vocabulary: a random token is below it.
    probability: with which a token or word is hidden.
    whole_word: whether a word is hidden as a whole; it needs `words`.

  Raises:
    InputError: whole words of a batch without `words`.
  """
  tokens, words = batch['tokens'], batch.get('words')
  real = batch['mask'] if 'mask' in batch else jnp.ones(tokens.shape, bool)
  if whole_word and words is None:
    raise InputError(
      'masked_lm: whole_word is set, but the batch has no words; encode with data.encode_masked'
    )
  # A polynomial of the tokens, modulo 2^32: the key of a row is that of its text.
  powers = np.cumprod(np.full(tokens.shape[1], 0x9E3779B1, np.uint32), dtype=np.uint32)
  content = jnp.where(real, tokens + 1, 0).astype(jnp.uint32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, (content * powers[None]).sum(axis=1))

  def draw(number: int, draw_row: Any) -> jax.Array:
    return jax.vmap(lambda key: draw_row(jax.random.fold_in(key, number)))(keys)

  shape = tokens.shape[1:]
  chance = draw(0, lambda key: jax.random.uniform(key, shape))
  if whole_word and words is not None:
    begins = words[:, 1:] != words[:, :-1]
    if 'segments' in batch:  # each document counts its own words
      begins = begins | (batch['segments'][:, 1:] != batch['segments'][:, :-1])
    chance = jnp.take_along_axis(chance, jnp.pad(jnp.cumsum(begins, axis=1), ((0, 0), (1, 0))), 1)
  hidden = real & (chance < probability)
  if words is not None:
    hidden = hidden & (words >= 0)
  kind = draw(1, lambda key: jax.random.uniform(key, shape))
  other = draw(2, lambda key: jax.random.randint(key, shape, 0, vocabulary, tokens.dtype))
  shown = jnp.where(kind < 0.8, mask_token, jnp.where(kind < 0.9, other, tokens))
  return Masked(jnp.where(hidden, shown, tokens), hidden)


def masked_lm(
  model: Any,
  mask_token: int,
  vocabulary: int | None = None,
  probability: float = 0.15,
  whole_word: bool = False,
  chunk: int | None = None,
) -> Objective:
  """`sum over hidden t of -log p(token_t | the others)` in nats; weight: their number.

  A training step hides others each time. An evaluation, which has no key, hides the same in every
  text, so that its loss can be compared between steps and runs.

  Batch: see `mask_tokens`; `positions` int32 `[B, T]` and `weight` `[B]` if present.
  Metrics: `accuracy`, the count of hidden tokens that have the largest logit. Of a whole split
  `perplexity`, `exp` of the mean nats.

  Args:
    model: a `ModelSpec` whose task is `masked_lm`; see `models.masked_lm`.
    mask_token: the id of `[MASK]`.
    vocabulary: random tokens are below it; the model's own by default.
    probability, whole_word: see `mask_tokens`.
    chunk: predictions whose logits are held at a time; None for an eighth of the tokens. Hidden
      tokens come first, and chunks that have none are not computed.

  Raises:
    InputError: a probability that is none, or a mask token outside the vocabulary.
  """
  size = model.config.vocabulary if vocabulary is None else vocabulary
  if not 0 < probability < 1:
    raise InputError(f'masked_lm: probability is {probability!r}; it must be between 0 and 1')
  if not 0 <= mask_token < size:
    raise InputError(
      f'masked_lm: mask_token is {mask_token!r}, which is none of the {size} tokens; give the id '
      'of [MASK]'
    )

  def compute(
    params: Params, batch: Batch, key: Key | None = None
  ) -> tuple[ops.CrossEntropy, jax.Array]:
    tokens = batch['tokens']
    draw, key = (jax.random.key(0), None) if key is None else tuple(jax.random.split(key))
    seen, hidden = mask_tokens(draw, batch, mask_token, size, probability, whole_word)
    features = features_of(model, params, {**batch, 'tokens': seen}, key)
    # Hidden tokens first, in each row by itself: rows stay on their devices.
    order = jnp.argsort(~hidden, axis=1, stable=True)
    features = jnp.take_along_axis(features, order[:, :, None], axis=1)
    targets = jnp.take_along_axis(tokens, order, axis=1)
    weights = jnp.take_along_axis(hidden, order, axis=1) * row_weights(batch)[:, None]
    rows, length = tokens.shape
    found = ops.chunked_cross_entropy(
      features.swapaxes(0, 1).reshape(rows * length, -1),
      model.head,
      around(params),
      targets.T.reshape(-1),
      weights.T.reshape(-1),
      chunk or rows * math.ceil(length / 8),
    )
    return found, weights.sum()

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    found, weight = compute(params, batch, key)
    return Loss(found.loss, weight, {'accuracy': found.correct})

  def nats(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    found, weight = compute(params, batch)
    return found.nats, weight

  return measured_perplexity(objective, nats)
