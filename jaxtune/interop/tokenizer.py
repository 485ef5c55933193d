"""The tokenizer that belongs to a model, and the tokens that mean something to it."""

import os
import pathlib
from typing import Any

import tokenizers

from jaxtune.data import SpecialTokens, Tokenizer
from jaxtune.interop.fields import read_json
from jaxtune.interop.gguf_header import field, read_header
from jaxtune.interop.gguf_tokenizer import read_tokenizer, token_id
from jaxtune.interop.source import locate
from jaxtune.typing import InputError


def tokenizer(source: str | os.PathLike[str]) -> Tokenizer:
  """The tokenizer of a folder or GGUF file together with its special tokens and chat template.

  Raises:
    InputError: as `load_tokenizer`.
  """
  encoder = load_tokenizer(source)
  return Tokenizer(encoder, _special_tokens(locate(source), encoder))


def load_tokenizer(source: str | os.PathLike[str]) -> tokenizers.Tokenizer:
  """The tokenizer in `tokenizer.json` of a folder, or in a GGUF file.

  Truncation and padding are switched off: lengths are a choice of the run.

  Raises:
    InputError: there is none, it is damaged, or a GGUF's is of an unknown kind.
  """
  path = locate(source)
  if not path.is_dir():
    return read_tokenizer(path)
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

  A folder names them in `tokenizer_config.json`, or else gives ids in `config.json`; tokens that
  end a text are also in `generation_config.json`.

  Raises:
    InputError: as `load_tokenizer`.
  """
  path = locate(source)
  return _special_tokens(path, load_tokenizer(path) if path.is_dir() else None)


def _special_tokens(path: pathlib.Path, own: tokenizers.Tokenizer | None) -> SpecialTokens:
  """Those of a GGUF file, or of a folder whose tokenizer is `own`."""
  if own is None or not path.is_dir():
    header = read_header(path)
    bos, eos, pad, *turn = (token_id(header, n) for n in ('bos', 'eos', 'padding', 'eot', 'eom'))
    tokens = field(header, 'tokenizer.ggml.tokens', [])
    ids = {'bos_token': bos, 'eos_token': eos, 'pad_token': pad}
    texts = {name: tokens[i] for name, i in ids.items() if i is not None}
    template = field(header, 'tokenizer.chat_template', None)
    return SpecialTokens(bos, eos, pad, template, _ids(eos, *turn), texts)
  named, config, generation = (
    _optional(path / f'{name}.json') for name in ('tokenizer_config', 'config', 'generation_config')
  )
  bos, eos, pad = (_id(own, named, config, name) for name in ('bos', 'eos', 'pad'))
  ids = {'bos_token': bos, 'eos_token': eos, 'pad_token': pad}
  texts = {name: own.id_to_token(i) or '' for name, i in ids.items() if i is not None}
  for name, token in named.items():
    token = token.get('content') if isinstance(token, dict) else token
    if name.endswith('_token') and isinstance(token, str):
      texts[name] = token
  template = named.get('chat_template')
  if isinstance(template, list):  # several, by name
    template = {t.get('name'): t.get('template') for t in template}.get('default')
  file = path / 'chat_template.jinja'
  if file.exists():
    template = file.read_text(encoding='utf-8')
  return SpecialTokens(
    bos,
    eos,
    pad,
    template if isinstance(template, str) else None,
    _ids(eos, config.get('eos_token_id'), generation.get('eos_token_id')),
    texts,
  )


def _ids(*found: Any) -> tuple[int, ...]:
  """Every id once, of ids, lists of them, and None."""
  flat = [i for some in found for i in (some if isinstance(some, list) else [some])]
  return tuple(dict.fromkeys(i for i in flat if isinstance(i, int)))


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
