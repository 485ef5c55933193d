"""Pixels are scaled as the folder says, and files that say it badly are refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import interop
from jaxtune.typing import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.2, 0.25]


def write(folder, name='preprocessor_config.json', **fields):
  (folder / name).write_text(json.dumps(fields))
  return folder


@pytest.mark.parametrize('part', [False, True])
def test_every_channel_has_its_own_numbers(tmp_path, part):
  fields = {'image_mean': MEAN, 'image_std': STD, 'rescale_factor': 1 / 127}
  if part:
    write(tmp_path, 'processor_config.json', image_processor=fields)
  else:
    write(tmp_path, **fields)
  got = interop.load_image_scaling(tmp_path)(PIXELS)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, (PIXELS / 127 - MEAN) / STD, rtol=1e-5, atol=1e-6)
  one = interop.load_image_scaling(tmp_path)(PIXELS[0])
  np.testing.assert_array_equal(one, got[0])


def test_steps_are_left_out_where_the_file_says_so(tmp_path):
  scale = interop.load_image_scaling(write(tmp_path, do_normalize=False))
  np.testing.assert_allclose(scale(PIXELS), PIXELS / 255, rtol=1e-6)
  fields = {'image_mean': MEAN, 'image_std': STD}
  scale = interop.load_image_scaling(write(tmp_path, do_rescale=False, **fields))
  np.testing.assert_allclose(scale(PIXELS), (PIXELS - np.array(MEAN)) / STD, rtol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({}, 'image_mean is None'),
    ({'image_mean': MEAN, 'image_std': STD[:2]}, 'do not fit'),
    ({'image_mean': MEAN, 'image_std': [1, 1, 0]}, 'do not fit'),
    ({'image_mean': ['a'], 'image_std': [1]}, r"image_mean is \['a'\]"),
    ({'do_rescale': True, 'rescale_factor': 0}, 'rescale_factor is 0'),
    ({'do_normalize': 'no'}, "do_normalize is 'no'"),
    ({'image_processor': 3}, 'image_processor is 3'),
  ],
)
def test_bad_files_are_refused(tmp_path, fields, words):
  with pytest.raises(InputError, match=words):
    interop.load_image_scaling(write(tmp_path, **fields))


def test_a_folder_without_the_file_is_refused(tmp_path):
  with pytest.raises(InputError, match='has no preprocessor_config.json'):
    interop.load_image_scaling(tmp_path)
