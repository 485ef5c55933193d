"""What the files of the decoder families share: fields of `config.json`, names of layers, heads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.interop import fields
from jaxtune.interop.names import Name
from jaxtune.interop.rope_fields import read_rope, write_rope
from jaxtune.models import BlockConfig, DecoderConfig
from jaxtune.ops import Rope
from jaxtune.typing import InputError

Raw = dict[str, Any]

_LAYER = 'model.layers.{layer}.'
_KINDS = {'full_attention': False, 'sliding_attention': True}


def dense(ours: str, theirs: str) -> tuple[Name, Name]:
  """The rows of a matrix that they hold as `[out, in]`, and of its bias."""
  return Name(ours, f'{theirs}.weight', True), Name(f'{ours}_bias', f'{theirs}.bias')


def fused(theirs: str, sizes: Mapping[str, int]) -> tuple[Name, ...]:
  """The rows of matrices, and of their biases, whose outputs follow each other in one tensor.

  Args:
    theirs: the tensor, without `.weight`.
    sizes: of each of our matrices, how many outputs it has.
  """
  rows, start = [], 0
  for ours, size in sizes.items():
    part = np.arange(start, start + size)
    rows += [row._replace(part=part) for row in dense(ours, theirs)]
    start += size
  return tuple(rows)


def norm(ours: str, theirs: str) -> tuple[Name, Name]:
  """The rows of a norm's scale and bias."""
  return Name(f'{ours}/scale', f'{theirs}.weight'), Name(f'{ours}/bias', f'{theirs}.bias')


# The names that most families share, biases among them that not all of their models have.
ENDS = (Name('embed/tokens', 'model.embed_tokens.weight'), *norm('norm', 'model.norm'))
ATTENTION = (
  *norm('decoder/{layer}/attn_norm', _LAYER + 'input_layernorm'),
  *dense('decoder/{layer}/attn/q', _LAYER + 'self_attn.q_proj'),
  *dense('decoder/{layer}/attn/k', _LAYER + 'self_attn.k_proj'),
  *dense('decoder/{layer}/attn/v', _LAYER + 'self_attn.v_proj'),
  *dense('decoder/{layer}/attn/o', _LAYER + 'self_attn.o_proj'),
  *norm('decoder/{layer}/attn/q_norm', _LAYER + 'self_attn.q_norm'),
  *norm('decoder/{layer}/attn/k_norm', _LAYER + 'self_attn.k_norm'),
)
MLP_NORM = norm('decoder/{layer}/mlp_norm', _LAYER + 'post_attention_layernorm')
MLP = (
  *dense('decoder/{layer}/mlp/gate', _LAYER + 'mlp.gate_proj'),
  *dense('decoder/{layer}/mlp/up', _LAYER + 'mlp.up_proj'),
  *dense('decoder/{layer}/mlp/down', _LAYER + 'mlp.down_proj'),
)


def head(
  config: DecoderConfig, causal: str = 'lm_head', text: str = 'score', token: str = 'score'
) -> tuple[Name, Name]:
  """The head that there is: a language model's or a classifier's of texts or tokens, as named."""
  if not config.outputs:
    return dense('head/dense', causal)
  return dense('head/dense', token if config.each_token else text)


def classes(stem: str) -> dict[str, str]:
  """The classes of a family that has all of them."""
  return {
    'features': f'{stem}Model',
    'causal_lm': f'{stem}ForCausalLM',
    'classification': f'{stem}ForSequenceClassification',
    'token_classification': f'{stem}ForTokenClassification',
  }


def read_sizes(
  raw: Raw,
  file: str,
  *,
  positions: int,
  epsilon: float = 1e-6,
  tied: bool = False,
  head_width: int = 0,
  activation: str = 'silu',
  activation_key: str = 'hidden_act',
) -> dict[str, Any]:
  """The attributes of a configuration whose fields have the same names in all of these families.

  Args:
    raw: the file's object.
    file: for messages.
    positions, epsilon, tied, head_width, activation: the family's own, where the file has none;
      `head_width` 0 for the width over the heads.
    activation_key: the family's own word.

  Raises:
    InputError: a field is missing or malformed, or the sizes do not fit each other.
  """
  width = fields.integer(raw, file, 'hidden_size')
  heads = fields.integer(raw, file, 'num_attention_heads')
  sizes: dict[str, Any] = {
    'model_type': raw['model_type'],
    'vocabulary': fields.integer(raw, file, 'vocab_size'),
    'width': width,
    'hidden': fields.integer(raw, file, 'intermediate_size'),
    'layers': fields.integer(raw, file, 'num_hidden_layers'),
    'heads': heads,
    'kv_heads': fields.integer(raw, file, 'num_key_value_heads', heads),
    'head_width': fields.integer(raw, file, 'head_dim', head_width or max(1, width // heads)),
    'positions': fields.integer(raw, file, 'max_position_embeddings', positions),
    'epsilon': fields.real(raw, file, 'rms_norm_eps', epsilon),
    'activation': fields.activation(raw, file, activation, activation_key),
    'tied': fields.boolean(raw, file, 'tie_word_embeddings', tied),
    'init_scale': fields.real(raw, file, 'initializer_range', 0.02),
  }
  check_heads(DecoderConfig(**sizes), file)
  return sizes


def check_heads(config: DecoderConfig, file: str) -> None:
  """Query heads must share key-value heads evenly, and rotary positions pair a head's halves.

  Raises:
    InputError: they do not.
  """
  if config.heads % config.kv_heads or config.head_width % 2:
    raise InputError(
      f'{file}: {config.heads} heads of width {config.head_width} over {config.kv_heads} key-value '
      'heads do not fit (a multiple, an even width); take the config that belongs to the weights'
    )


def write_sizes(config: DecoderConfig, activation_key: str = 'hidden_act') -> Raw:
  """The fields that `read_sizes` reads, and those of the rotary positions."""
  rope = {} if config.rope is None else write_rope(config.rope, config.head_width)
  return rope | {
    'vocab_size': config.vocabulary,
    'hidden_size': config.width,
    'intermediate_size': config.hidden,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_width,
    'max_position_embeddings': config.positions,
    'rms_norm_eps': config.epsilon,
    activation_key: config.activation,
    'tie_word_embeddings': config.tied,
    'initializer_range': config.init_scale,
  }


def read_whole_rope(raw: Raw, file: str, sizes: Mapping[str, Any], base: float = 10000.0) -> Rope:
  """The rotation of a family that rotates heads whole.

  Raises:
    InputError: the field is malformed, or asks to rotate a part of each head.
  """
  rope = read_rope(raw, file, sizes['head_width'], sizes['positions'], base=base)
  if rope.width:
    raise InputError(
      f'{file}: partial_rotary_factor is {rope.width / sizes["head_width"]:g}, which '
      f'{raw["model_type"]} does not have; take the config that belongs to the weights'
    )
  return rope


def or_null(
  read: Callable[[Raw, str, str, Any], Any], raw: Raw, file: str, key: str, default: Any
) -> Any:
  """What `read` finds; 0 where the file has null, or nothing and the default is None.

  Raises:
    InputError: as `read`.
  """
  return 0 if raw.get(key, default) is None else read(raw, file, key, default)


def flags(
  raw: Raw, file: str, key: str, layers: int, kinds: Mapping[Any, bool]
) -> tuple[bool, ...]:
  """A list with a word of `kinds` for each layer, as the words' values.

  Raises:
    InputError: the list is of another length, or holds another word.
  """
  found = raw[key]
  if not isinstance(found, list) or len(found) != layers:
    length = f'{len(found)} entries' if isinstance(found, list) else repr(found)
    raise InputError(
      f'{file}: {key} is {length}; it must be a list of {layers}, one for each layer'
    )
  for entry in found:
    if not isinstance(entry, str | int) or entry not in kinds:
      raise InputError(
        f'{file}: {key} has {entry!r}, which jaxtune does not know; '
        f'known: {", ".join(map(str, kinds))}; choose another checkpoint'
      )
  return tuple(kinds[entry] for entry in found)


def read_window(
  raw: Raw, file: str, layers: int, window: int, local: Sequence[bool]
) -> dict[str, Any]:
  """The attributes `window` and `local`, with the pattern `local` where there are no `layer_types`.

  Raises:
    InputError: `layer_types` are malformed, or layers have a window where there is none.
  """
  if raw.get('layer_types') is not None:
    local = flags(raw, file, 'layer_types', layers, _KINDS)
  if not any(local):
    return {}
  if not window:
    raise InputError(
      f'{file}: layers have sliding_attention, but sliding_window or use_sliding_window switches '
      'it off; take the config that belongs to the weights'
    )
  return {'window': window, 'local': () if all(local) else tuple(local)}


def layer_types(config: BlockConfig) -> list[str]:
  """The kind of each layer, as `read_window` reads it."""
  local = config.local or (config.window > 0,) * config.layers
  return ['sliding_attention' if near else 'full_attention' for near in local]
