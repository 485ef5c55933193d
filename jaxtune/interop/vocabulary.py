"""Whether a tokenizer belongs to a model: every token that it makes needs a row of the embedding.

Some tokenizers end with tokens that their model has no row for: Gemma 3's has 262,145 for 262,144
rows, the last one an image's. Such a token comes only from its own name in a text, so the tokenizer
is accepted, and the token is refused where it is met.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tokenizers

from jaxtune.models import ModelSpec
from jaxtune.typing import InputError


def check_vocabulary(tokenizer: tokenizers.Tokenizer, model: ModelSpec, source: Any) -> None:
  """Every token that ordinary text can become has a row; added tokens may be without.

  Args:
    tokenizer: of the model.
    model: with an embedding of tokens.
    source: where the tokenizer is from, for the message.

  Raises:
    InputError: the tokenizer is another model's.
  """
  rows, added = model.config.vocabulary, tokenizer.get_added_tokens_decoder()
  without = [i for i in tokenizer.get_vocab().values() if i >= rows and i not in added]
  if without:
    raise InputError(
      f'{source}: the tokenizer has {tokenizer.get_vocab_size():,} tokens, but the model has '
      f'{rows:,} rows for them ({tokenizer.id_to_token(min(without))!r} has none); '
      'take the tokenizer that belongs to the model'
    )


def check_ids(ids: Iterable[np.ndarray], tokenizer: tokenizers.Tokenizer, model: ModelSpec) -> None:
  """Every id that is about to be used has a row.

  Args:
    ids: token ids in arrays of any shape, such as the `tokens` of encoded examples.
    tokenizer: that made them.
    model: that will look them up.

  Raises:
    InputError: one has none; names its token.
  """
  rows = model.config.vocabulary
  largest = max((int(np.max(part)) for part in ids if np.size(part)), default=-1)
  if largest >= rows:
    raise InputError(
      f'the texts hold the token {tokenizer.id_to_token(largest)!r} ({largest}), but the model has '
      f'{rows:,} rows of tokens; take it out of the texts, or take the tokenizer of the model'
    )
