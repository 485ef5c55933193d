"""The image tower of CLIP in Hugging Face's files, of its own or of both towers."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families.decoder import dense, norm
from jaxtune.interop.families.vit import patches, read_sizes, write_sizes
from jaxtune.interop.names import Family, Name
from jaxtune.models import VisionConfig
from jaxtune.typing import InputError

_MODEL = 'vision_model.'
_LAYER = f'{_MODEL}encoder.layers.{{layer}}.'


def names(config: VisionConfig) -> tuple[Name, ...]:
  """The table of the tower and of the projection behind it."""
  return (
    patches(config, f'{_MODEL}embeddings.patch_embedding.weight'),
    Name('embed/class', f'{_MODEL}embeddings.class_embedding'),
    Name('embed/positions', f'{_MODEL}embeddings.position_embedding.weight'),
    *norm('embed/norm', f'{_MODEL}pre_layrnorm'),
    *norm('encoder/{layer}/attn_norm', f'{_LAYER}layer_norm1'),
    *dense('encoder/{layer}/attn/q', f'{_LAYER}self_attn.q_proj'),
    *dense('encoder/{layer}/attn/k', f'{_LAYER}self_attn.k_proj'),
    *dense('encoder/{layer}/attn/v', f'{_LAYER}self_attn.v_proj'),
    *dense('encoder/{layer}/attn/o', f'{_LAYER}self_attn.out_proj'),
    *norm('encoder/{layer}/mlp_norm', f'{_LAYER}layer_norm2'),
    *dense('encoder/{layer}/mlp/up', f'{_LAYER}mlp.fc1'),
    *dense('encoder/{layer}/mlp/down', f'{_LAYER}mlp.fc2'),
    *norm('norm', f'{_MODEL}post_layernorm'),
    Name('projection/dense', 'visual_projection.weight', True),
  )


def _tower(raw: dict[str, Any], file: str, projection: int) -> VisionConfig:
  return VisionConfig(
    model_type='clip_vision_model',
    activation=fields.activation(raw, file, 'quick_gelu'),
    patch_bias=False,
    embed_norm=True,
    late_norm=True,
    pooler='',
    projection=projection,
    **read_sizes(raw, file, 32, 1e-5),
  )


def read_config(raw: dict[str, Any], file: str) -> VisionConfig:
  """The tower that a `config.json` describes.

  Raises:
    InputError: a field is malformed, or asks for arithmetic that the model lacks.
  """
  projected = (raw.get('architectures') or [''])[0] == 'CLIPVisionModelWithProjection'
  return _tower(raw, file, fields.integer(raw, file, 'projection_dim', 512) if projected else 0)


def read_both(raw: dict[str, Any], file: str) -> VisionConfig:
  """The image tower and its projection in the `config.json` of both towers.

  Raises:
    InputError: a field is malformed, or asks for arithmetic that the model lacks.
  """
  # Old files have a second form of the object, which takes precedence.
  tower = raw.get('vision_config_dict')
  tower = raw.get('vision_config') if tower is None else tower
  tower = {} if tower is None else tower
  if not isinstance(tower, dict):
    raise InputError(f'{file}: vision_config is {tower!r}; it must be an object')
  projection = fields.integer(raw, file, 'projection_dim', 512)
  return _tower(tower, f'{file}: vision_config', projection)


def write_config(config: VisionConfig) -> dict[str, Any]:
  """The fields of `config.json` that the tower fixes."""
  written = write_sizes(config)
  if not config.projection:
    return written
  projected = {'architectures': ['CLIPVisionModelWithProjection']}
  return written | projected | {'projection_dim': config.projection}


CLIP_VISION = Family(
  'clip_vision_model',
  _MODEL,
  names,
  read_config,
  write_config,
  classes={'features': 'CLIPVisionModel'},
)
CLIP = Family(
  'clip',
  _MODEL,
  names,
  read_both,
  write_config,
  classes={'features': 'CLIPModel'},
  left_out=r'^(text_model\.|text_projection\.|logit_scale$)',
)
