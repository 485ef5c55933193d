"""Two tokenizers: a real one with special tokens, and one token a byte for exact expectations."""

import pathlib

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from jaxtune.data import SpecialTokens, Tokenizer


@pytest.fixture(scope='session')
def wordpiece(minilm: pathlib.Path) -> tokenizers.Tokenizer:
  """MiniLM's tokenizer, whose file asks for truncation and padding to 128 tokens."""
  return tokenizers.Tokenizer.from_file(str(minilm / 'tokenizer.json'))


@pytest.fixture(scope='session')
def bytewise() -> tokenizers.Tokenizer:
  """Token 0 begins, token 1 ends a document, any other is one byte; no special tokens are added."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: i for i, token in enumerate(['<bos>', '<eos>', *alphabet])}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
  tokenizer.add_special_tokens(['<bos>', '<eos>'])
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


@pytest.fixture(scope='session')
def begun(bytewise: tokenizers.Tokenizer) -> Tokenizer:
  """A model's: texts begin with token 0 and end with token 1."""
  encoder = tokenizers.Tokenizer.from_str(bytewise.to_str())
  begins = processors.TemplateProcessing(single='<bos> $A', special_tokens=[('<bos>', 0)])
  encoder.post_processor = begins  # type: ignore[assignment]
  return Tokenizer(encoder, SpecialTokens(bos=0, eos=1))
