"""The tokenizer in a GGUF file: byte-level BPE, or SentencePiece's BPE by scores.

The file holds the vocabulary and the merges; how text is split before merging is only a word
(`tokenizer.ggml.pre`), whose meaning is in llama.cpp.
"""

import pathlib
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxtune.interop.gguf_header import Header, field, read_header
from jaxtune.typing import InputError

_UNKNOWN, _CONTROL, _USER = 2, 3, 4  # tokenizer.ggml.token_type
_SPACE = '▁'

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
_WORD = r'[^\r\n\p{L}\p{N}]?\p{L}+|'
_UPPER, _LOWER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]', r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_LLAMA3 = (_CONTRACTION + _WORD + r'\p{N}{1,3}|' + _REST,)
_QWEN2 = (_CONTRACTION + _WORD + r'\p{N}|' + _REST,)
_TEKKEN = (
  rf'[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|'
  r'\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+',
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DIGITS = (r'\p{N}', _GPT2)
# One after the other, each cutting what the one before has left.
_SPLITS = {
  'gpt-2': (_GPT2,),
  'smollm': _DIGITS,
  'starcoder': _DIGITS,
  'llama-bpe': _LLAMA3,
  'llama3': _LLAMA3,
  'llama-v3': _LLAMA3,
  'tekken': _TEKKEN,
  'qwen2': _QWEN2,
  'deepseek-r1-qwen': _QWEN2,
  'default': (r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', r'[0-9][0-9][0-9]'),
}
# What the file does not say about those is known: they begin with the first token, and a word that
# is a token is taken whole.
_WHOLE_WORDS = ('llama-bpe', 'llama3', 'llama-v3', 'tekken')
_KNOWN = f'llama, and gpt2 with {", ".join(sorted(_SPLITS))}'


def read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
  """The tokenizer of a GGUF file.

  Raises:
    InputError: it has none, one of an unknown kind, or a damaged one.
  """
  header = read_header(path)
  kind, pre = (field(header, f'tokenizer.ggml.{key}', None) for key in ('model', 'pre'))
  if kind is None:
    raise InputError(f'{path}: holds no tokenizer; take a GGUF file with one')
  if kind != 'llama' and (kind != 'gpt2' or pre not in _SPLITS):
    raise InputError(
      f'{path}: its tokenizer is {kind!r} with {pre!r}; known: {_KNOWN}; '
      "load the tokenizer from the folder of the model's safetensors"
    )
  try:
    return _build(header, kind, kind == 'llama' or pre in _WHOLE_WORDS)
  except InputError:
    raise
  except Exception as error:  # the library raises bare Exception
    text = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f'{path}: its tokenizer is damaged ({text}); download it again') from None


def token_id(header: Header, name: str) -> int | None:
  """The id of the token with that meaning ('bos', 'eos', 'padding', 'unknown'); None for none."""
  found = field(header, f'tokenizer.ggml.{name}_token_id', None)
  count = len(field(header, 'tokenizer.ggml.tokens', []))
  return found if isinstance(found, int) and 0 <= found < count else None


def _build(header: Header, kind: str, begins: bool) -> tokenizers.Tokenizer:
  tokens = _list(header, 'tokens', str)
  tokenizer = (_byte_level if kind == 'gpt2' else _sentencepiece)(header, tokens)
  kinds = _list(header, 'token_type', int, [])
  for wanted, special in (((_UNKNOWN, _CONTROL), True), ((_USER,), False)):
    tokenizer.add_tokens(
      [
        tokenizers.AddedToken(token, special=special, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in wanted
      ]
    )
  text = ['$A']
  if field(header, 'tokenizer.ggml.add_bos_token', begins):
    text.insert(0, tokens[_needed(header, 'bos')])
  if field(header, 'tokenizer.ggml.add_eos_token', False):
    text.append(tokens[_needed(header, 'eos')])
  named = [(token, tokenizer.token_to_id(token)) for token in text if token != '$A']
  if named:
    tokenizer.post_processor = processors.TemplateProcessing(single=text, special_tokens=named)
  return tokenizer


def _byte_level(header: Header, tokens: list[str]) -> tokenizers.Tokenizer:
  pre = field(header, 'tokenizer.ggml.pre')
  merges = [tuple(pair.split(' ')) for pair in _list(header, 'merges', str)]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _WHOLE_WORDS)
  tokenizer = tokenizers.Tokenizer(model)
  cuts = [pre_tokenizers.Split(tokenizers.Regex(cut), 'isolated') for cut in _SPLITS[pre]]
  bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytewise])
  tokenizer.decoder = decoders.ByteLevel()
  if _SPLITS[pre] is _QWEN2:
    tokenizer.normalizer = normalizers.NFC()
  return tokenizer


def _sentencepiece(header: Header, tokens: list[str]) -> tokenizers.Tokenizer:
  vocabulary = {token: i for i, token in enumerate(tokens)}
  scores = _list(header, 'scores', float)
  if len(scores) != len(tokens):
    raise InputError(
      f'{header.path}: tokenizer.ggml.scores are {len(scores)} for {len(tokens)} tokens; '
      'download it again'
    )
  unknown = token_id(header, 'unknown')
  model = models.BPE(
    vocab=vocabulary,
    merges=_merges(header, vocabulary, scores),
    unk_token=None if unknown is None else tokens[unknown],
    fuse_unk=True,
    byte_fallback=True,
  )
  tokenizer = tokenizers.Tokenizer(model)
  prefixed = field(header, 'tokenizer.ggml.add_space_prefix', True)
  spaces = normalizers.Replace(' ', _SPACE)
  tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE)] * prefixed + [spaces])
  steps = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
  tokenizer.decoder = decoders.Sequence([*steps] + [decoders.Strip(' ', 1, 0)] * prefixed)
  return tokenizer


def _merges(
  header: Header, vocabulary: dict[str, int], scores: list[float]
) -> list[tuple[str, str]]:
  """SentencePiece joins the neighbours that make the token with the best score.

  As merges: every way to cut a token in two, in the order of the tokens' scores.
  """
  kinds = _list(header, 'token_type', int, [1] * len(scores))
  merges = []
  for token in sorted(
    vocabulary, key=lambda token: (-scores[vocabulary[token]], vocabulary[token])
  ):
    if kinds[vocabulary[token]] != 1:
      continue
    for cut in range(1, len(token)):
      if token[:cut] in vocabulary and token[cut:] in vocabulary:
        merges.append((token[:cut], token[cut:]))
  return merges


def _list(header: Header, name: str, kind: type, default: Any = None) -> Any:
  key = f'tokenizer.ggml.{name}'
  found = field(header, key) if default is None else field(header, key, default)
  if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
    raise InputError(f'{header.path}: {key} is not a list of {kind.__name__}; download it again')
  return found


def _needed(header: Header, name: str) -> int:
  found = token_id(header, name)
  if found is None:
    raise InputError(
      f'{header.path}: tokenizer.ggml.{name}_token_id is missing, or no token has it, but '
      f'tokenizer.ggml.add_{name}_token asks for it; download it again'
    )
  return found
