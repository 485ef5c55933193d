"""A tokenizer with what its model makes of its special tokens."""

import dataclasses
import types
from collections.abc import Mapping
from typing import NamedTuple

import tokenizers


class SpecialTokens(NamedTuple):
  """Tokens with a meaning: their ids, None where a model has none.

  chat_template: how a conversation is written (Jinja).
  ends: all tokens that end what a model writes; more than `eos` where a turn ends with another.
  texts: what a chat template knows them by, such as `{'eos_token': '</s>'}`.
  """

  bos: int | None = None
  eos: int | None = None
  pad: int | None = None
  chat_template: str | None = None
  ends: tuple[int, ...] = ()
  texts: Mapping[str, str] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """What turns texts and conversations into the tokens of a model.

  Attributes:
    encoder: texts to token ids, without special tokens of its own where told so.
    special: what begins and ends a text, and the chat template.
  """

  encoder: tokenizers.Tokenizer
  special: SpecialTokens = SpecialTokens()
