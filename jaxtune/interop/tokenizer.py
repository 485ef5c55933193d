"""The tokenizer that belongs to a model, and the tokens that mean something to it."""

import os
import pathlib
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from jaxtune.interop.fields import read_json
from jaxtune.interop.gguf_file import field, open_reader
from jaxtune.interop.source import locate
from jaxtune.typing import InputError

# How text is split before the byte-level BPE, by llama.cpp's word for it (tokenizer.ggml.pre).
_PRE = {'gpt-2': (), 'smollm': (pre_tokenizers.Digits(individual_digits=True),)}
_CONTROL, _USER = 3, 4  # tokenizer.ggml.token_type


class SpecialTokens(NamedTuple):
  """Ids of tokens with a meaning, None where a model has none, and its chat template (Jinja)."""

  bos: int | None = None
  eos: int | None = None
  pad: int | None = None
  chat_template: str | None = None


def load_tokenizer(source: str | os.PathLike[str]) -> tokenizers.Tokenizer:
  """The tokenizer in `tokenizer.json` of a folder, or in a GGUF file.

  Truncation and padding are switched off: lengths are a choice of the run.

  Raises:
    InputError: there is none, it is damaged, or a GGUF's is of an unknown kind.
  """
  path = locate(source)
  if not path.is_dir():
    return _from_gguf(path)
  file = path / 'tokenizer.json'
  if not file.exists():
    raise InputError(
      f'{path}: has no tokenizer.json; write one with transformers '
      '(AutoTokenizer.from_pretrained(folder).save_pretrained(folder))'
    )
  try:
    tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding='utf-8'))
  except Exception as error:  # the library raises bare Exception
    raise InputError(f'{file}: is not a tokenizer ({error}); download it again') from None
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def special_tokens(source: str | os.PathLike[str]) -> SpecialTokens:
  """Beginning, end and padding of texts, and the chat template.

  A folder names them in `tokenizer_config.json`, or else gives ids in `config.json`.

  Raises:
    InputError: as `load_tokenizer`.
  """
  path = locate(source)
  if not path.is_dir():
    reader = open_reader(path)
    bos, eos, pad = (
      field(reader, path, f'tokenizer.ggml.{name}_token_id', None)
      for name in ('bos', 'eos', 'padding')
    )
    return SpecialTokens(bos, eos, pad, field(reader, path, 'tokenizer.chat_template', None))
  tokenizer = load_tokenizer(path)
  named, config = _optional(path / 'tokenizer_config.json'), _optional(path / 'config.json')
  bos, eos, pad = (_id(tokenizer, named, config, name) for name in ('bos', 'eos', 'pad'))
  template = named.get('chat_template')
  file = path / 'chat_template.jinja'
  if file.exists():
    template = file.read_text(encoding='utf-8')
  return SpecialTokens(bos, eos, pad, template if isinstance(template, str) else None)


def _id(
  tokenizer: tokenizers.Tokenizer, named: dict[str, Any], config: dict[str, Any], name: str
) -> int | None:
  token = named.get(f'{name}_token')
  token = token.get('content') if isinstance(token, dict) else token
  if token is not None:
    return tokenizer.token_to_id(str(token))
  found = config.get(f'{name}_token_id')
  found = found[0] if isinstance(found, list) and found else found
  return found if isinstance(found, int) else None


def _optional(path: pathlib.Path) -> dict[str, Any]:
  return read_json(path) if path.exists() else {}


def _from_gguf(path: pathlib.Path) -> tokenizers.Tokenizer:
  reader = open_reader(path)
  kind, pre = (
    field(reader, path, f'tokenizer.ggml.{key}', default)
    for key, default in (('model', None), ('pre', 'gpt-2'))
  )
  if kind is None:
    raise InputError(f'{path}: holds no tokenizer; take a GGUF file with one')
  if kind != 'gpt2' or pre not in _PRE:
    raise InputError(
      f'{path}: its tokenizer is {kind!r} with {pre!r}; known: gpt2 with {", ".join(_PRE)}; '
      "load the tokenizer from the folder of the model's safetensors"
    )
  tokens = field(reader, path, 'tokenizer.ggml.tokens')
  merges = [tuple(pair.split(' ')) for pair in field(reader, path, 'tokenizer.ggml.merges')]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
  splitters = (*_PRE[pre], pre_tokenizers.ByteLevel(add_prefix_space=False))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splitters))
  tokenizer.decoder = decoders.ByteLevel()
  kinds = field(reader, path, 'tokenizer.ggml.token_type', [])
  for wanted, special in ((_CONTROL, True), (_USER, False)):
    tokenizer.add_tokens(
      [
        tokenizers.AddedToken(token, special=special, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind == wanted
      ]
    )
  if field(reader, path, 'tokenizer.ggml.add_bos_token', False):
    bos = field(reader, path, 'tokenizer.ggml.bos_token_id')
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f'{tokens[bos]} $A', special_tokens=[(tokens[bos], bos)]
    )
  return tokenizer
