"""ViT in Hugging Face's files, and what those of CLIP share with them."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families.decoder import dense, norm
from jaxtune.interop.names import Family, Name
from jaxtune.models import VisionConfig
from jaxtune.typing import InputError

_EMBED, _LAYER = 'vit.embeddings.', 'vit.encoder.layer.{layer}.'


def patches(config: VisionConfig, theirs: str) -> Name:
  """The row of the patches' embedding, which they hold as the kernel of a convolution."""
  shape = (config.width, config.channels, *config.patch)
  return Name('embed/patches', theirs, True, shape=shape)


def names(config: VisionConfig) -> tuple[Name, ...]:
  """The table, in the names that transformers writes."""
  return (
    patches(config, f'{_EMBED}patch_embeddings.projection.weight'),
    Name('embed/patches_bias', f'{_EMBED}patch_embeddings.projection.bias'),
    Name('embed/class', f'{_EMBED}cls_token', shape=(1, 1, config.width)),
    Name(
      'embed/positions', f'{_EMBED}position_embeddings', shape=(1, 1 + config.patches, config.width)
    ),
    *norm('encoder/{layer}/attn_norm', f'{_LAYER}layernorm_before'),
    *dense('encoder/{layer}/attn/q', f'{_LAYER}attention.attention.query'),
    *dense('encoder/{layer}/attn/k', f'{_LAYER}attention.attention.key'),
    *dense('encoder/{layer}/attn/v', f'{_LAYER}attention.attention.value'),
    *dense('encoder/{layer}/attn/o', f'{_LAYER}attention.output.dense'),
    *norm('encoder/{layer}/mlp_norm', f'{_LAYER}layernorm_after'),
    *dense('encoder/{layer}/mlp/up', f'{_LAYER}intermediate.dense'),
    *dense('encoder/{layer}/mlp/down', f'{_LAYER}output.dense'),
    *norm('norm', 'vit.layernorm'),
    *dense('pooler/dense', 'vit.pooler.dense'),
    *dense('head/dense', 'classifier'),
  )


# What transformers 5 calls the same tensors in memory, and whoever saves them from there.
_RENAMED = (
  (r'^layers\.', 'encoder.layer.'),
  (r'attention\.q_proj\.', 'attention.attention.query.'),
  (r'attention\.k_proj\.', 'attention.attention.key.'),
  (r'attention\.v_proj\.', 'attention.attention.value.'),
  (r'attention\.o_proj\.', 'attention.output.dense.'),
  (r'mlp\.fc1\.', 'intermediate.dense.'),
  (r'mlp\.fc2\.', 'output.dense.'),
)
_LIVE = (
  (r'\bencoder\.layer\.', 'layers.'),
  (r'attention\.attention\.query\.', 'attention.q_proj.'),
  (r'attention\.attention\.key\.', 'attention.k_proj.'),
  (r'attention\.attention\.value\.', 'attention.v_proj.'),
  (r'attention\.output\.dense\.', 'attention.o_proj.'),
  (r'intermediate\.dense\.', 'mlp.fc1.'),
  (r'output\.dense\.', 'mlp.fc2.'),
)


def _pair(raw: dict[str, Any], file: str, key: str, default: int) -> tuple[int, int]:
  """Height and width, given as one number or two."""
  value = raw.get(key)
  if not isinstance(value, list):
    value = [fields.integer(raw, file, key, default)] * 2
  if len(value) != 2 or any(isinstance(x, bool) or not isinstance(x, int) or x < 1 for x in value):
    raise InputError(f'{file}: {key} is {value!r}; it must be one or two positive whole numbers')
  return value[0], value[1]


def read_sizes(raw: dict[str, Any], file: str, patch: int, epsilon: float) -> dict[str, Any]:
  """The attributes of a configuration whose fields ViT and CLIP name alike.

  Args:
    raw: the file's object, or the part of it that describes the image tower.
    file: for messages.
    patch, epsilon: the family's own, where the file has none.

  Raises:
    InputError: a field is malformed, or the sizes do not fit each other.
  """
  width = fields.integer(raw, file, 'hidden_size', 768)
  heads = fields.integer(raw, file, 'num_attention_heads', 12)
  fields.check_width(width, heads, file)
  sizes: dict[str, Any] = {
    'width': width,
    'hidden': fields.integer(raw, file, 'intermediate_size', 3072),
    'layers': fields.integer(raw, file, 'num_hidden_layers', 12),
    'heads': heads,
    'epsilon': fields.real(raw, file, 'layer_norm_eps', epsilon),
    'image': _pair(raw, file, 'image_size', 224),
    'patch': _pair(raw, file, 'patch_size', patch),
    'channels': fields.integer(raw, file, 'num_channels', 3),
    'init_scale': fields.real(raw, file, 'initializer_range', 0.02),
  }
  image, cut = list(sizes['image']), list(sizes['patch'])
  if image[0] < cut[0] or image[1] < cut[1]:
    raise InputError(
      f'{file}: patch_size {cut} is larger than image_size {image}; '
      'take the config that belongs to the weights'
    )
  return sizes


def write_sizes(config: VisionConfig) -> dict[str, Any]:
  """The fields that `read_sizes` reads."""
  square = config.image[0] == config.image[1] and config.patch[0] == config.patch[1]
  return {
    'hidden_size': config.width,
    'intermediate_size': config.hidden,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'layer_norm_eps': config.epsilon,
    'image_size': config.image[0] if square else list(config.image),
    'patch_size': config.patch[0] if square else list(config.patch),
    'num_channels': config.channels,
    'hidden_act': config.activation,
    'initializer_range': config.init_scale,
  }


def read_config(raw: dict[str, Any], file: str) -> VisionConfig:
  """The model that a `config.json` describes.

  Raises:
    InputError: a field is malformed, or asks for arithmetic that the model lacks.
  """
  sizes = read_sizes(raw, file, 16, 1e-12)
  own = sizes['width'] // sizes['heads']
  fields.refuse(raw, file, head_dim=own, pooler_output_size=sizes['width'])
  return VisionConfig(
    model_type='vit',
    activation=fields.activation(raw, file, 'gelu'),
    qkv_bias=fields.boolean(raw, file, 'qkv_bias', True),
    pooler=fields.activation(raw, file, 'tanh', 'pooler_act'),
    **sizes,
  )


def write_config(config: VisionConfig) -> dict[str, Any]:
  """The fields of `config.json` that the model fixes."""
  return write_sizes(config) | {'qkv_bias': config.qkv_bias, 'pooler_act': config.pooler}


VIT = Family(
  'vit',
  'vit.',
  names,
  read_config,
  write_config,
  classes={'features': 'ViTModel', 'classification': 'ViTForImageClassification'},
  left_out=r'^(decoder\.|embeddings\.mask_token$)',  # of masked image modeling
  renamed=_RENAMED,
  live=_LIVE,
)
