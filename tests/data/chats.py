"""Templates of real models, tokenizers with their special tokens, and conversations."""

import pathlib
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from jaxtune.data import SpecialTokens, Tokenizer

# How Llama 3 and Qwen cut a text into words: all line breaks ahead of a word are one.
WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
FOLDER = pathlib.Path(__file__).parent / 'templates'


class Model(NamedTuple):
  """Of a real model: what its template takes, and what it writes around a turn.

  trims: whether it strips what is said.
  lead: what it writes between the prompt and the words of the last turn.
  """

  bos: str
  eos: str
  closes: str
  tokens: tuple[str, ...]
  tools: bool = False
  system: bool = True
  alternates: bool = False
  trims: bool = False
  lead: str = ''


IM = ('<|im_start|>', '<|im_end|>', '<|endoftext|>')
LLAMA = (
  '<|begin_of_text|>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|eot_id|>',
  '<|eom_id|>',
)
MODELS = {
  'chatml': Model('<|im_start|>', '<|im_end|>', '<|im_end|>', IM),
  'llama3': Model('<|begin_of_text|>', '<|eot_id|>', '<|eot_id|>', LLAMA, trims=True),
  'llama3_1': Model('<|begin_of_text|>', '<|eot_id|>', '<|eot_id|>', LLAMA, True, trims=True),
  'qwen2_5': Model('', '<|im_end|>', '<|im_end|>', IM, True),
  'qwen3': Model('', '<|im_end|>', '<|im_end|>', (*IM, '<think>', '</think>'), True),
  'gemma3': Model(
    '<bos>',
    '<eos>',
    '<end_of_turn>',
    ('<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>'),
    alternates=True,
    trims=True,
  ),
  'mistral_v0_3': Model(
    '<s>',
    '</s>',
    '</s>',
    ('<s>', '</s>', '[INST]', '[/INST]', '[TOOL_CALLS]', '[AVAILABLE_TOOLS]'),
    True,
    alternates=True,
    trims=True,
  ),
  'phi3': Model(
    '<s>',
    '<|endoftext|>',
    '<|end|>',
    ('<s>', '<|endoftext|>', '<|end|>', '<|user|>', '<|assistant|>', '<|system|>'),
  ),
}


def template(name: str) -> str:
  return (FOLDER / f'{name}.jinja').read_text(encoding='utf-8')


def special(name: str, tokenizer: tokenizers.Tokenizer, text: str | None = None) -> SpecialTokens:
  model = MODELS[name]
  texts = {'eos_token': model.eos} | ({'bos_token': model.bos} if model.bos else {})
  return SpecialTokens(
    bos=tokenizer.token_to_id(model.bos) if model.bos else None,
    eos=tokenizer.token_to_id(model.eos),
    chat_template=template(name) if text is None else text,
    texts=texts,
  )


def byte_level(name: str) -> Tokenizer:
  """One token a byte, but for a few pairs, and special tokens."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [('Ċ', 'Ċ'), ('Ġ', 'a'), ('Ġ', 'h'), ('a', 'n'), ('Ġa', 'n'), ('a', 'b')]
  words = [*alphabet, *(a + b for a, b in merges)]
  tokenizer = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(words)}, merges))
  cut = pre_tokenizers.Split(tokenizers.Regex(WORDS), 'isolated')
  bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bytewise])
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
  tokenizer.add_special_tokens(list(MODELS[name].tokens))
  return Tokenizer(tokenizer, special(name, tokenizer))


def sentencepiece(name: str, scheme: str = 'prepend') -> Tokenizer:
  """One token a character or byte, with the space that SentencePiece puts ahead of a text.

  Special tokens take in the white space behind them, as those of Phi-3 do.
  """
  characters = [*map(chr, range(33, 127)), '▁', '▁▁', '▁a', '\n']
  words = ['<unk>', *(f'<0x{i:02X}>' for i in range(256)), *characters]
  vocabulary = {t: i for i, t in enumerate(dict.fromkeys(words))}
  merges = [('▁', '▁'), ('▁', 'a')]
  tokenizer = tokenizers.Tokenizer(
    models.BPE(vocabulary, merges, unk_token='<unk>', fuse_unk=True, byte_fallback=True)
  )
  if scheme == 'prepend':
    space = normalizers.Replace(' ', '▁')
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), space])
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
  steps = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(' ', 1, 0)])
  swallows = name == 'phi3'
  tokens = [AddedToken(t, normalized=False, rstrip=swallows) for t in MODELS[name].tokens]
  tokenizer.add_special_tokens(tokens)
  return Tokenizer(tokenizer, special(name, tokenizer))


TOOLS: list[dict[str, Any]] = [
  {
    'type': 'function',
    'function': {
      'name': 'weather',
      'description': 'The weather "now".',
      'parameters': {'type': 'object', 'properties': {'city': {'type': 'string'}}},
    },
  }
]


def call(**arguments: Any) -> list[dict[str, Any]]:
  function = {'name': 'weather', 'arguments': arguments}
  return [{'type': 'function', 'id': 'abcdefghi', 'function': function}]


CALLS: list[dict[str, Any]] = [
  {'role': 'user', 'content': 'Hi.'},
  {'role': 'assistant', 'content': 'Hello! '},
  {'role': 'user', 'content': 'The weather in Zürich?'},
  {'role': 'assistant', 'tool_calls': call(city='Zürich "ZH"', days=[1, 2])},
  {'role': 'tool', 'name': 'weather', 'tool_call_id': 'abcdefghi', 'content': '"sunny"'},
  {'role': 'assistant', 'content': 'It is sunny.'},
  {'role': 'user', 'content': 'Thanks'},
  {'role': 'assistant', 'content': '\n\nYou are welcome 🎉'},
]
