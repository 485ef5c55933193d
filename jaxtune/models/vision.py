"""A transformer over the patches of an image: ViT (Dosovitskiy et al. 2020, arXiv:2010.11929).

The image tower of CLIP (Radford et al. 2021, arXiv:2103.00020) is one with other norms.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxtune import ops, shard
from jaxtune.models import block, stack
from jaxtune.models.block import BlockConfig, View
from jaxtune.models.layers import activation, apply, dense
from jaxtune.models.spec import ModelSpec, gathered, init_head
from jaxtune.typing import InputError, Key, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(BlockConfig):
  """Everything that fixes the shapes and the arithmetic of an image model.

  Attributes:
    image: height and width in pixels.
    patch: height and width of a patch in pixels; what is left over at the far edges is not seen.
    channels: of a pixel.
    patch_bias: whether the embedding of patches has a bias.
    embed_norm: whether there is a norm in front of the first layer (CLIP).
    late_norm: whether the final norm is part of the head and takes the class token alone (CLIP),
      instead of being part of `features`.
    pooler: activation of a dense layer on the class token; '' for none.
    projection: width of the space into which the class token is projected; 0 for none.
  """

  model_type: str = 'vit'
  width: int = 768
  hidden: int = 3072
  heads: int = 12
  epsilon: float = 1e-12
  norm: str = 'layer'
  norm_bias: bool = True
  activation: str = 'gelu'
  gated: bool = False
  qkv_bias: bool = True
  o_bias: bool = True
  mlp_bias: bool = True
  image: tuple[int, int] = (224, 224)
  patch: tuple[int, int] = (16, 16)
  channels: int = 3
  patch_bias: bool = True
  embed_norm: bool = False
  late_norm: bool = False
  pooler: str = 'tanh'
  projection: int = 0

  @property
  def patches(self) -> int:
    """How many an image has, N."""
    return (self.image[0] // self.patch[0]) * (self.image[1] // self.patch[1])


AXES = (
  *block.AXES,
  (r'embed/patches$', (None, 'embed')),
  (r'embed/(patches_bias|class)$', ('embed',)),
  (r'embed/positions$', (None, 'embed')),
  (r'(pooler|projection|head)/dense$', ('embed', None)),
  (r'(pooler|head)/dense_bias$', (None,)),
)


def _init(config: VisionConfig, key: Key) -> Params:
  keys = jax.random.split(key, 7)
  x = jnp.zeros((1, config.width))

  def layer(key: Key, kind: tuple[bool, bool]) -> Params:
    return block.Block(config, False, *kind).init(key, x, 1, View(None, None))['params']

  def matrix(key: Key, rows: int, columns: int) -> jax.Array:
    return init_head(key, rows, columns, config.init_scale)

  def norm() -> Params:
    return block.norm(config).init(key, x)['params']

  pixels = config.patch[0] * config.patch[1] * config.channels
  params = {
    'embed': {
      'patches': matrix(keys[0], pixels, config.width),
      'class': matrix(keys[1], 1, config.width)[0],
      'positions': matrix(keys[2], 1 + config.patches, config.width),
    },
    'encoder': stack.init_stack(layer, keys[3], block.layer_kinds(config)),
  }
  if config.patch_bias:
    params['embed']['patches_bias'] = jnp.zeros((config.width,))
  if config.embed_norm:
    params['embed']['norm'] = norm()
  params['norm'] = norm()
  if config.outputs:
    head = matrix(keys[4], config.width, config.outputs)
    return params | {'head': {'dense': head, 'dense_bias': jnp.zeros((config.outputs,))}}
  if config.projection:
    params['projection'] = {'dense': matrix(keys[5], config.width, config.projection)}
  if config.pooler:
    dense = matrix(keys[6], config.width, config.width)
    params['pooler'] = {'dense': dense, 'dense_bias': jnp.zeros((config.width,))}
  return params


def _unfold(config: VisionConfig, images: jax.Array) -> jax.Array:
  """Each patch as a row, channel by channel: `[B, H, W, C] -> [B, N, C*P*P]`."""
  batch = images.shape[0]
  if images.shape[1:] != (*config.image, config.channels):
    raise InputError(
      f'images are of the shape {list(images.shape[1:])}, but the model takes '
      f'{[*config.image, config.channels]} (height, width, channels); resize them'
    )
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise InputError(
      f'images are of type {images.dtype}; scale and normalize them as the model was trained '
      '(interop.load_image_scaling)'
    )
  rows, columns = (size // patch for size, patch in zip(config.image, config.patch, strict=True))
  high, wide = config.patch
  x = images[:, : rows * high, : columns * wide]
  x = x.reshape(batch, rows, high, columns, wide, config.channels).transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(batch, rows * columns, -1)


def _embed(config: VisionConfig, embed: Params, images: jax.Array) -> jax.Array:
  """`[B, H, W, C] -> [B, 1+N, D]`, see `block.lay`."""
  batch = images.shape[0]
  first = embed['class']
  x = _unfold(config, images).astype(first.dtype).reshape(batch * config.patches, -1)
  x = dense(embed, 'patches', x)
  first = jnp.broadcast_to(first, (batch, 1, config.width))
  x = jnp.concatenate([first, x.reshape(batch, config.patches, config.width)], axis=1)
  x = x + ops.take(embed['positions'], jnp.arange(1 + config.patches)[None])
  x = block.lay(shard.constrain(x, 'rows', 'length', None))
  return apply(block.norm(config), embed['norm'], x) if config.embed_norm else x


def _features(
  config: VisionConfig,
  params: Params,
  images: jax.Array,
  mask: jax.Array | None = None,
  *,
  key: Key | None = None,
) -> jax.Array:
  params = gathered(AXES, params, 'embed')
  batch, length = images.shape[0], 1 + config.patches
  view = View(None, ops.visible(mask, None, causal=False, length=length))
  x = _embed(config, params['embed'], images)
  x = block.run(config, params['encoder'], x, batch, lambda index: view, key, causal=False)
  if not config.late_norm:
    x = apply(block.norm(config), params['norm'], x)
  return x.reshape(batch, length, config.width)


def pool_image(config: VisionConfig, params: Params, features: jax.Array) -> jax.Array:
  """One vector an image: the class token through the final norm and the pooler, `[B, D]`.

  Hugging Face's `pooler_output`.
  """
  x = features[:, 0]
  if config.late_norm:
    x = apply(block.norm(config), params['norm'], x)
  if 'pooler' in params:
    x = activation(config.pooler)(dense(params['pooler'], 'dense', x))
  return x


def _head(
  config: VisionConfig, params: Params, features: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  del mask
  for name, wanted in (('head', config.outputs), ('projection', config.projection)):
    if wanted:
      return dense(params[name], 'dense', pool_image(config, params, features))
  return features


def vision(config: VisionConfig) -> ModelSpec:
  """The model for a configuration; its tokens are images, float `[B, H, W, C]`, normalized.

  `features` returns `[B, 1+N, D]`, the class token and the patches row by row; `mask` is bool
  `[B, 1+N]`. `apply` returns `[B, C]` outputs of a classifier, the `[B, P]` projection, or the
  features.

  Raises:
    InputError: a classifier of each token, which this model does not have.
  """
  if config.each_token:
    raise InputError('an image model labels images, not patches; leave `each_token` out')
  return ModelSpec(
    family='vision',
    config=config,
    task='classification' if config.outputs else 'features',
    init=functools.partial(_init, config),
    features=functools.partial(_features, config),
    head=functools.partial(_head, config),
    axis_rules=AXES,
  )
