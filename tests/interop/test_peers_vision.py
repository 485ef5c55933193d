"""Image models that transformers saved compute the same numbers here, and ours there."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import interop, models
from jaxtune.interop.families.clip import CLIP_VISION
from jaxtune.interop.families.vit import VIT
from jaxtune.typing import InputError
from tests.interop import families
from tests.interop.families import APART, SAME, distance

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
saved = pytest.importorskip('safetensors.torch')
pytest.importorskip('transformers')

SIZES = {
  'hidden_size': 24,
  'intermediate_size': 36,
  'num_hidden_layers': 2,
  'num_attention_heads': 3,
  'image_size': 12,
  'patch_size': 4,
  'layer_norm_eps': 3e-2,
}
OBLONG = {'image_size': [13, 8], 'patch_size': [4, 2], 'num_channels': 1}
TEXT = {
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'vocab_size': 40,
  'max_position_embeddings': 8,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
VIT_MODEL, VIT_LABELS = 'ViTModel', 'ViTForImageClassification'
TOWER, PROJECTED = 'CLIPVisionModel', 'CLIPVisionModelWithProjection'
KINDS = {
  'vit': (VIT_MODEL, SIZES),
  'oblong': (VIT_MODEL, {**SIZES, **OBLONG, 'qkv_bias': False, 'pooler_act': 'gelu'}),
  'labels': (VIT_LABELS, {**SIZES, 'num_labels': 5, 'hidden_act': 'gelu_new'}),
  'clip': (TOWER, SIZES),
  'projected': (PROJECTED, {**SIZES, 'projection_dim': 7, 'hidden_act': 'gelu'}),
  'both': ('CLIPModel', {'vision_config': SIZES, 'text_config': TEXT, 'projection_dim': 7}),
}


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  make = families.maker(tmp_path_factory.mktemp('vision'))
  return lambda kind: make(KINDS[kind][0], **KINDS[kind][1])


def images(model):
  shape = (3, *model.config.image, model.config.channels)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def run(theirs, images, **given):
  pixels = torch.tensor(images).permute(0, 3, 1, 2)
  with torch.no_grad():
    if type(theirs).__name__ == 'CLIPModel':
      return {'image_embeds': theirs.get_image_features(pixels).pooler_output}
    return theirs(pixels, **given)


def main_output(out):
  names = ('logits', 'image_embeds', 'last_hidden_state')
  return next(out[name] for name in names if name in out).numpy()


def ours_on(model, params, images, mask=None):
  with jax.disable_jit():
    return np.asarray(model.apply(params, images, mask))


@pytest.mark.parametrize('kind', KINDS)
def test_outputs_agree(plain, kind):
  """Contract: within 1e-4 of the standard deviation."""
  peer = plain(kind)
  data = images(peer.model)
  want, got = run(peer.theirs, data), ours_on(peer.model, peer.params, data)
  error = distance(main_output(want), got)
  if 'pooler_output' in want:
    vector = models.pool_image(peer.model.config, peer.params, got)
    error = max(error, distance(want['pooler_output'].numpy(), vector))
  print(f'{kind}: {error:.1e} of the standard deviation')
  assert error < SAME


def test_hidden_patches_agree(plain):
  peer = plain('vit')
  data, mask = images(peer.model), np.arange(10)[None] < np.array([[10], [4], [7]])
  want = main_output(run(peer.theirs, data, attention_mask=torch.tensor(mask)))
  assert distance(want, ours_on(peer.model, peer.params, data, mask), mask) < SAME


TELLING = {
  'vit': {'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-2, 'num_attention_heads': 4},
  'clip': {'hidden_act': 'gelu', 'layer_norm_eps': 1e-2, 'num_attention_heads': 4},
}
SHAPED = {
  'vit': {
    'hidden_size': 48,
    'intermediate_size': 37,
    'num_hidden_layers': 3,
    'image_size': 16,
    'patch_size': 3,
    'num_channels': 4,
    'qkv_bias': False,
  },
}
SHAPED['clip'] = {k: v for k, v in SHAPED['vit'].items() if k != 'qkv_bias'}
SHAPED['projected'] = {'projection_dim': 8}


@pytest.mark.parametrize('kind', TELLING)
def test_every_field_shows(plain, tmp_path, kind):
  """Contract: with another value parity fails, and transformers reads the same value."""
  peer = plain(kind)
  data = images(peer.model)
  families.check_fields(
    peer,
    tmp_path,
    KINDS[kind][0],
    [{field: value} for field, value in TELLING[kind].items()],
    lambda model, params: ours_on(model, params, data),
    lambda theirs, got: distance(main_output(run(theirs, data)), got),
  )


def test_the_poolers_activation_shows(plain, tmp_path):
  peer = plain('vit')
  features = ours_on(peer.model, peer.params, images(peer.model))
  want = np.asarray(models.pool_image(peer.model.config, peer.params, features))
  model, params = interop.load(families.edited(peer, tmp_path / 'x', pooler_act='relu'))
  assert distance(want, models.pool_image(model.config, params, features)) > APART


@pytest.mark.parametrize('kind', SHAPED)
def test_every_shape_is_checked(plain, tmp_path, kind):
  """Contract: what contradicts the weights is refused."""
  families.check_shapes(plain(kind), tmp_path, SHAPED[kind])


def test_no_field_is_forgotten(plain):
  """Every field that we write is among those whose changes are tested."""
  silent = {'initializer_range'}
  vit = set(VIT.write_config(plain('vit').model.config)) - silent
  assert vit == {*TELLING['vit'], *SHAPED['vit'], 'pooler_act'}
  clip = set(CLIP_VISION.write_config(plain('projected').model.config)) - silent
  assert clip - {'architectures'} == {*TELLING['clip'], *SHAPED['clip'], 'projection_dim'}


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'both'])
def test_saved_as_it_was(plain, tmp_path, kind):
  """Contract: names, types and bytes of the tensors; with the source's configuration or without."""
  peer = plain(kind)
  data = images(peer.model)
  for name, source in (('with', peer.model.source), ('without', None)):
    model = dataclasses.replace(peer.model, source=source)
    interop.save_hf(tmp_path / name, model, peer.params)
    again = families.load_theirs(tmp_path / name, KINDS[kind][0])
    assert distance(main_output(run(peer.theirs, data)), main_output(run(again, data))) < 1e-6
    raw = json.loads((tmp_path / name / 'config.json').read_text())
    assert raw['architectures'] == [KINDS[kind][0]]
    assert interop.load(tmp_path / name)[0].config == peer.model.config
  assert families.tensors(tmp_path / 'with') == families.tensors(peer.folder)
  before, after = peer.theirs.config.to_dict(), again.config.to_dict()
  differ = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
  meant = {'_name_or_path', 'torch_dtype', 'dtype', 'id2label', 'label2id', 'problem_type'}
  assert differ <= meant, differ


def test_the_image_tower_of_both(plain, tmp_path):
  """The text tower is left out, which is said; what is saved is the image tower's own class."""
  peer = plain('both')
  with pytest.warns(UserWarning, match=r'tensors are left out.*logit_scale, text_model'):
    model, params = interop.load(peer.folder)
  interop.save_hf(tmp_path / 'tower', model, params)
  again = families.load_theirs(tmp_path / 'tower', PROJECTED)
  data = images(model)
  assert distance(main_output(run(peer.theirs, data)), main_output(run(again, data))) < 1e-6
  # Old files have the fields twice, and the second form wins.
  old = families.edited(peer, tmp_path / 'old', vision_config={}, vision_config_dict=SIZES)
  assert interop.load(old)[0].config == model.config


@pytest.mark.parametrize('kind', ['vit', 'labels'])
def test_the_names_that_transformers_has_in_memory_are_read(plain, tmp_path, kind):
  peer = plain(kind)
  folder = families.edited(peer, tmp_path / 'memory')
  (folder / 'model.safetensors').unlink()
  own = {name: x.contiguous() for name, x in peer.theirs.state_dict().items()}
  assert not set(own) & {name for name in families.tensors(peer.folder) if 'encoder.layer' in name}
  saved.save_file(own, folder / 'model.safetensors')
  model, params = interop.load(folder)
  jax.tree.map(np.testing.assert_array_equal, params, peer.params)
  interop.save_hf(tmp_path / 'again', model, params)
  assert set(families.tensors(tmp_path / 'again')) == set(own)


@pytest.mark.parametrize('kind', ['vit', 'clip'])
def test_half_precision(tmp_path, kind):
  half = families.random_model(KINDS[kind][0], **KINDS[kind][1]).to(torch.bfloat16)
  half.save_pretrained(tmp_path / 'theirs')
  model, params = interop.load(tmp_path / 'theirs')
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {'bfloat16'}
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  data = images(model)
  want = main_output(run(families.load_theirs(tmp_path / 'theirs', KINDS[kind][0]), data))
  assert distance(want, ours_on(model, wide, data)) < SAME
  interop.save_hf(tmp_path / 'ours', model, params)
  assert families.tensors(tmp_path / 'ours') == families.tensors(tmp_path / 'theirs')


def test_a_tuned_vit_opens_in_transformers(plain, tmp_path):
  """A fresh head on the bare model, under an adapter: the pooler stays behind."""
  peer = plain('vit')
  key = jax.random.key(0)
  model, params = models.classifier(key, peer.model, peer.params, 3)
  interop.save_hf(tmp_path / 'tuned', model, params, labels=('cat', 'dog', 'owl'))
  again = families.load_theirs(tmp_path / 'tuned', VIT_LABELS)
  assert again.config.id2label == {0: 'cat', 1: 'dog', 2: 'owl'}
  data = images(model)
  assert distance(main_output(run(again, data)), ours_on(model, params, data)) < SAME


def test_a_model_for_masked_images_is_read_without_its_decoder(tmp_path):
  theirs = families.random_model('ViTForMaskedImageModeling', **SIZES, encoder_stride=4)
  theirs.save_pretrained(tmp_path)
  with pytest.warns(UserWarning, match='3 tensors are left out'):
    model, params = interop.load(tmp_path)
  data = images(model)
  want = main_output(run(copy.deepcopy(theirs.vit), data))
  assert distance(want, ours_on(model, params, data)) < SAME


@pytest.mark.parametrize(
  ('kind', 'change', 'words'),
  [
    ('vit', {'hidden_act': 'mish'}, ['hidden_act', 'mish', 'quick_gelu']),
    ('vit', {'pooler_output_size': 7}, ['pooler_output_size', '7']),
    ('vit', {'head_dim': 7}, ['head_dim', '7']),
    ('vit', {'patch_size': 13}, ['patch_size [13, 13] is larger']),
    ('vit', {'image_size': [12, 12, 12]}, ['image_size', '[12, 12, 12]']),
    ('vit', {'image_size': -12}, ['image_size is -12']),
    ('vit', {'qkv_bias': 1}, ['qkv_bias is 1']),
    ('labels', {'id2label': {'0': 'a'}}, ['classifier', '[5, 24]', '[1, 24]']),
    ('clip', {'num_attention_heads': 5}, ['width 24', '5 attention heads']),
    ('both', {'vision_config': 3}, ['vision_config is 3']),
    ('both', {'vision_config.hidden_act': 'mish'}, ['vision_config', 'hidden_act', 'mish']),
    ('both', {'architectures': ['CLIPForImageClassification']}, ['CLIPForImageClassification']),
  ],
)
def test_what_is_not_computed_is_refused(plain, tmp_path, kind, change, words):
  with pytest.raises(InputError) as error:
    interop.load(families.edited(plain(kind), tmp_path / 'x', **change))
  message = str(error.value)
  assert '\n' not in message and all(word in message for word in words), message


def test_pixels_are_scaled_as_transformers_scales_them(tmp_path):
  from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

  pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
  for number, processor in enumerate(
    (
      ViTImageProcessorPil(size={'height': 12, 'width': 12}, image_mean=[0.1, 0.2, 0.3]),
      CLIPImageProcessorPil(do_resize=False, do_center_crop=False),
      ViTImageProcessorPil(do_resize=False, do_normalize=False, rescale_factor=0.5),
    )
  ):
    processor.save_pretrained(tmp_path / str(number))
    want = processor(images=list(pixels), return_tensors='np')['pixel_values']
    got = interop.load_image_scaling(tmp_path / str(number))(pixels)
    np.testing.assert_allclose(got, want.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
