"""Pixels as an image model was trained to see them."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.interop import fields
from jaxtune.interop.source import locate
from jaxtune.typing import InputError

_FILES = ('preprocessor_config.json', 'processor_config.json')


def load_image_scaling(source: str | os.PathLike[str]) -> Callable[[Any], jax.Array]:
  """`(pixels * factor - mean) / deviation`, a channel each, as a model's folder gives them.

  It is a function of images of the model's own size, `[..., H, W, C]` of any type, that returns
  float32. Neither it nor the model resizes: how pixels are interpolated is a choice of its own
  (`jax.image.resize`).

  Args:
    source: folder or Hub id; its `preprocessor_config.json`, or the part of
      `processor_config.json` for images.

  Raises:
    InputError: there is no such file, or a field is malformed.
  """
  folder = locate(source)
  path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
  if path is None:
    raise InputError(f'{folder}: has no {_FILES[0]}; take the whole folder of the image model')
  file, raw = str(path), fields.read_json(path)
  raw = raw.get('image_processor', raw)
  if not isinstance(raw, dict):
    raise InputError(f'{file}: image_processor is {raw!r}; it must be an object')
  factor, mean, deviation = 1.0, np.zeros(1), np.ones(1)
  if fields.boolean(raw, file, 'do_rescale', True):
    factor = fields.real(raw, file, 'rescale_factor', 1 / 255)
  if fields.boolean(raw, file, 'do_normalize', True):
    mean, deviation = _numbers(raw, file, 'image_mean'), _numbers(raw, file, 'image_std')
    if mean.shape != deviation.shape or deviation.min() <= 0:
      raise InputError(
        f'{file}: image_mean {raw["image_mean"]} and image_std {raw["image_std"]} do not fit (as '
        'many, and the latter positive); take the file that belongs to the weights'
      )

  def scale(images: Any) -> jax.Array:
    shape = (1,) * (images.ndim - 1) + (-1,)
    scaled = jnp.asarray(images).astype(jnp.float32) * factor
    return (scaled - mean.reshape(shape)) / deviation.reshape(shape)

  return scale


def _numbers(raw: dict[str, Any], file: str, key: str) -> np.ndarray:
  value = raw.get(key)
  if not isinstance(value, list) or not value or not all(isinstance(x, int | float) for x in value):
    raise InputError(f'{file}: {key} is {value!r}; it must be a list of numbers, one a channel')
  return np.array(value, np.float32)
