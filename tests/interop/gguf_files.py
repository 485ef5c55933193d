"""GGUF files, as llama.cpp writes them: of a folder, by the `gguf` package's names; of words."""

import json
import pathlib
import re
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

ARCHITECTURES = {
  'llama': 'llama',
  'mixtral': 'llama',
  'smollm3': 'smollm3',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'qwen3_moe': 'qwen3moe',
  'gemma2': 'gemma2',
  'gemma3_text': 'gemma3',
}
KINDS = gguf.GGMLQuantizationType
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
PROSE = (
  'the rain in spain falls mainly on the plain; then there is the other thing, again and again'
)
_EXPERT = re.compile(r'experts\.(\d+)\.')


def rows_interleaved(x: np.ndarray, heads: int) -> np.ndarray:
  """The order in which the rows of q and k are stored for rotations of neighbours."""
  return x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def llama3_divisors(scaling: dict[str, Any], width: int) -> np.ndarray:
  base = scaling['rope_theta']
  factor, low, high = (scaling[k] for k in ('factor', 'low_freq_factor', 'high_freq_factor'))
  original = scaling['original_max_position_embeddings']
  divisors = []
  for frequency in np.float32(1) / np.float32(base) ** (np.arange(0, width, 2, dtype='f') / width):
    wave = 2 * np.pi / frequency
    if wave < original / high:
      divisors.append(1.0)
    elif wave > original / low:
      divisors.append(factor)
    else:
      smooth = (original / wave - low) / (high - low)
      divisors.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(divisors, np.float32)


def read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """`config.json` and the tensors of a folder."""
  raw = json.loads((folder / 'config.json').read_text())
  return raw, safetensors.numpy.load_file(folder / 'model.safetensors')


def tensors(raw: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors by llama.cpp's names, in its order and with its offsets."""
  architecture = ARCHITECTURES[raw['model_type']]
  names = gguf.get_tensor_name_map(
    {word: kind for kind, word in gguf.MODEL_ARCH_NAMES.items()}[architecture],
    raw['num_hidden_layers'],
  )
  experts: dict[str, dict[int, np.ndarray]] = {}
  heads = {'q': raw['num_attention_heads'], 'k': raw['num_key_value_heads']}
  out = {}

  def add(name: str, value: np.ndarray) -> None:
    stored = names.get_name(name, try_suffixes=('.weight', '.bias'))
    assert stored is not None, name
    out[stored] = np.ascontiguousarray(value, np.float32)

  for name, value in given.items():
    turned = re.search(r'\.([qk])_proj\.', name)
    if turned and architecture in ('llama', 'smollm3'):
      value = rows_interleaved(value, heads[turned[1]])
    if architecture.startswith('gemma') and name.endswith('norm.weight'):
      value = value + 1
    expert = _EXPERT.search(name)
    if expert:
      whole = _EXPERT.sub('experts.', name).replace('model.layers', 'layers')
      whole = whole.replace('block_sparse_moe', 'feed_forward')
      experts.setdefault(whole.replace('layers', 'model.layers', 'mlp' in whole), {})[
        int(expert[1])
      ] = value
      continue
    if name == 'lm_head.weight' and raw['tie_word_embeddings']:
      continue
    add(name, value)
  for name, each in experts.items():
    add(name, np.stack([each[i] for i in range(len(each))]))
  if raw['rope_parameters'].get('rope_type') == 'llama3':
    out['rope_freqs.weight'] = llama3_divisors(raw['rope_parameters'], raw['head_dim'])
  return out


def fields(raw: dict[str, Any]) -> dict[str, Any]:
  """The metadata, as far as it matters to the model."""
  architecture = ARCHITECTURES[raw['model_type']]
  own: dict[str, Any] = {
    'block_count': raw['num_hidden_layers'],
    'context_length': raw['max_position_embeddings'],
    'embedding_length': raw['hidden_size'],
    'feed_forward_length': raw['intermediate_size'],
    'attention.head_count': raw['num_attention_heads'],
    'attention.head_count_kv': raw['num_key_value_heads'],
    'attention.layer_norm_rms_epsilon': raw['rms_norm_eps'],
    'attention.key_length': raw['head_dim'],
    'attention.value_length': raw['head_dim'],
  }
  full = raw['rope_parameters'].get('full_attention', raw['rope_parameters'])
  if architecture != 'gemma2':
    own['rope.freq_base'] = full['rope_theta']
  if architecture in ('llama', 'smollm3'):
    own |= {'vocab_size': raw['vocab_size'], 'rope.dimension_count': raw['head_dim']}
  if full['rope_type'] in ('linear', 'yarn'):
    own |= {'rope.scaling.type': full['rope_type'], 'rope.scaling.factor': full['factor']}
  if full['rope_type'] == 'yarn':
    own['rope.scaling.original_context_length'] = full['original_max_position_embeddings']
    own['rope.scaling.yarn_beta_fast'] = full['beta_fast']
    own['rope.scaling.yarn_beta_slow'] = full['beta_slow']
  if architecture == 'gemma2':
    own |= {k: raw[k] for k in ('attn_logit_softcapping', 'final_logit_softcapping')}
  if architecture == 'gemma3' and raw.get('final_logit_softcapping'):
    own['final_logit_softcapping'] = raw['final_logit_softcapping']
  if architecture.startswith('gemma'):
    own['attention.sliding_window'] = raw['sliding_window']
  experts = raw.get('num_experts') or raw.get('num_local_experts')
  if experts:
    own |= {'expert_count': experts, 'expert_used_count': raw['num_experts_per_tok']}
  if architecture == 'qwen3moe':
    own['expert_feed_forward_length'] = raw['moe_intermediate_size']
  return {f'{architecture}.{key}': value for key, value in own.items()}


def write(
  path: pathlib.Path,
  architecture: str,
  metadata: dict[str, Any],
  stored: dict[str, Any],
  kinds: dict[str, Any] | None = None,
) -> pathlib.Path:
  """A GGUF file; tensors named in `kinds` are bytes of those types already."""
  writer = gguf.GGUFWriter(path, architecture)
  for key, value in metadata.items():
    if value is None:
      continue
    if isinstance(value, list):
      writer.add_array(key, value)
    elif isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      writer.add_uint32(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    else:
      writer.add_string(key, value)
  for name, value in stored.items():
    writer.add_tensor(name, value, raw_dtype=(kinds or {}).get(name))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def convert(folder: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
  """The folder's model as a GGUF file of float32."""
  raw, given = read(folder)
  words = {'tokenizer.ggml.tokens': [f'<{i}>' for i in range(raw['vocab_size'])]}
  return write(path, ARCHITECTURES[raw['model_type']], fields(raw) | words, tensors(raw, given))


def _words(path: pathlib.Path, **fields: Any) -> pathlib.Path:
  return write(path, 'llama', {f'tokenizer.ggml.{k}': v for k, v in fields.items()}, {})


def byte_level(path: pathlib.Path, pre: str, **fields: Any) -> pathlib.Path:
  """Bytes, three words and two tokens with a meaning."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = [*alphabet, 'th', 'the', 'Ġthe', '<|end|>', '<think>']
  kinds = [NORMAL] * (len(tokens) - 2) + [CONTROL, USER]
  given = {'tokens': tokens, 'merges': ['t h', 'th e', 'Ġ the'], 'token_type': kinds}
  return _words(path, **{'model': 'gpt2', 'pre': pre} | given | fields)


def sentencepiece(path: pathlib.Path, **fields: Any) -> tuple[pathlib.Path, dict[str, float]]:
  """A vocabulary as of Llama 2, learned from a little text, with scores by rank."""
  learner = tokenizers.Tokenizer(models.BPE())
  learner.pre_tokenizer = pre_tokenizers.Metaspace()
  learner.train_from_iterator(
    [PROSE], trainers.BpeTrainer(vocab_size=70, show_progress=False, special_tokens=['<unk>'])
  )
  learned = sorted(learner.get_vocab(), key=learner.get_vocab().get)[1:]
  bytewise = [f'<0x{i:02X}>' for i in range(256)]
  tokens = ['<unk>', '<s>', '</s>', *bytewise, *learned, '<user>', '   ']
  kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(learned), USER, USER]
  scores = [0.0] * 259 + [-float(i) for i in range(len(learned))] + [0.0, 0.0]
  given = {'tokens': tokens, 'token_type': kinds, 'scores': scores}
  ids = {'bos_token_id': 1, 'eos_token_id': 2, 'unknown_token_id': 0}
  _words(path, model='llama', **given | ids | fields)
  return path, {t: s for t, s, kind in zip(tokens, scores, kinds, strict=True) if kind == NORMAL}
