"""Prompt tuning, P-tuning and prefix tuning in PEFT's files.

One tensor, `prompt_embeddings`: the prompt `[P, D]` as it goes into the layers, so times the scale
of the embedding (Gemma); or the prefix `[P, L * 2 * G*K]`, keys and values of a layer side by side.
An MLP that made them is not in the files. Modules that go in whole are named from the model on, for
PEFT puts nothing around it.
https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxtune import adapt, ops
from jaxtune.interop.peft.format import Export, Format, Import, Written
from jaxtune.models import EncoderConfig
from jaxtune.typing import InputError, Params

_KEY = 'prompt_embeddings'
_SIZES = 'num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers'
_ENCODER = 'encoder_reparameterization_type encoder_hidden_size encoder_num_layers encoder_dropout'


def _sizes(tokens: int, width: int, heads: int, layers: int) -> dict[str, Any]:
  return {
    'num_virtual_tokens': tokens,
    'token_dim': width,
    'num_transformer_submodules': 1,
    'num_attention_heads': heads,
    'num_layers': layers,
  }


def _scale(config: Any) -> float:
  return 1.0 if isinstance(config, EncoderConfig) else config.embed_scale


def _embeddings(files: Import, width: int) -> np.ndarray:
  """The tensor `[P, width]`.

  Raises:
    InputError: it is missing, or of another size.
  """
  submodules = files.config.get('num_transformer_submodules') or 1
  if submodules != 1:
    raise InputError(
      f'{files.file}: num_transformer_submodules is {submodules!r}; jaxtune has virtual tokens for '
      'decoders and encoders, whose number is 1'
    )
  if _KEY not in files.tensors:
    raise InputError(f'{files.folder}: lacks the tensor {_KEY}; take a whole adapter')
  tokens = files.integer('num_virtual_tokens', files.config.get('num_virtual_tokens'))
  return files.read(_KEY, (tokens, width))


def _write_prompt(export: Export) -> Written:
  c = export.model.config
  rows = np.asarray(ops.materialize(export.params['prompt']['tokens']), np.float32)
  tokens, width = rows.shape
  config = _sizes(tokens, width, c.heads, c.layers)
  return Written({_KEY: rows * np.float32(_scale(c))}, set(), config)


def _write_encoded(export: Export) -> Written:
  leaf = export.params['prompt']['tokens']
  written = _write_prompt(export)
  encoder = {
    'encoder_reparameterization_type': 'MLP',
    'encoder_hidden_size': leaf.hidden.shape[-1],
    'encoder_num_layers': 2,
    'encoder_dropout': 0.0,
  }
  return written._replace(config=written.config | encoder)


def _read_prompt(files: Import) -> Params:
  c = files.model.config
  rows = _embeddings(files, c.width) / np.float32(_scale(c))
  return {**files.params, 'prompt': {'tokens': jnp.asarray(rows)}}


def _write_prefix(export: Export) -> Written:
  c, held = export.model.config, export.params['prefix']
  both = np.stack([np.asarray(held[kind], np.float32) for kind in ('keys', 'values')], 1)
  layers, _, tokens, width = both.shape
  rows = both.transpose(2, 0, 1, 3).reshape(tokens, -1)
  config = _sizes(tokens, width, c.kv_heads, layers)
  config |= {'encoder_hidden_size': width, 'prefix_projection': False}
  return Written({_KEY: np.ascontiguousarray(rows)}, set(), config)


def _read_prefix(files: Import) -> Params:
  c = files.model.config
  width = c.kv_heads * c.head_width
  rows = _embeddings(files, c.layers * 2 * width)
  both = rows.reshape(len(rows), c.layers, 2, width).transpose(2, 1, 0, 3)
  held = {kind: jnp.asarray(x) for kind, x in zip(('keys', 'values'), both, strict=True)}
  return {**files.params, 'prefix': held}


def _format(peft_type: str, name: str, **fields: Any) -> Format:
  known = fields.pop('known')
  return Format(
    peft_type,
    trained=rf'^{name}/',
    moves=lambda key, values: key == _KEY,
    known=frozenset(f'{_SIZES} {known}'.split()),
    prefix='base_model.',
    **fields,
  )


P_TUNING = _format(
  'P_TUNING',
  'prompt',
  holds=lambda path, leaf, trains: isinstance(leaf, adapt.EncodedPrompt),
  write=_write_encoded,
  read=_read_prompt,
  known=_ENCODER,
)
PROMPT_TUNING = _format(
  'PROMPT_TUNING',
  'prompt',
  holds=lambda path, leaf, trains: path.startswith('prompt/'),
  write=_write_prompt,
  read=_read_prompt,
  known='prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs',
)
PREFIX_TUNING = _format(
  'PREFIX_TUNING',
  'prefix',
  holds=lambda path, leaf, trains: path.startswith('prefix/'),
  write=_write_prefix,
  read=_read_prefix,
  known='prefix_projection encoder_hidden_size init_weights',
)
