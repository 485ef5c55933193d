"""T5 that transformers saved computes the same numbers here, and ours there.

What is wanted is computed by transformers in float64: scores that are not scaled make its float32
worse than our bounds.
"""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import interop, models
from jaxtune.interop.families.t5 import T5
from jaxtune.models.encoder_decoder import _bucket
from jaxtune.typing import InputError
from tests.interop import families
from tests.interop.families import SAME, batch, distance

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
saved = pytest.importorskip('safetensors.torch')
pytest.importorskip('transformers')

SIZES = {
  'vocab_size': 40,
  'd_model': 24,
  'd_kv': 10,
  'd_ff': 20,
  'num_layers': 2,
  'num_decoder_layers': 3,
  'num_heads': 3,
  'relative_attention_num_buckets': 8,
  'relative_attention_max_distance': 7,
  'layer_norm_epsilon': 0.3,
}
FLAN = {**SIZES, 'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}
WHOLE = 'T5ForConditionalGeneration'
KINDS = {
  'first release': (WHOLE, SIZES),
  'tied': (WHOLE, FLAN),  # transformers ties what is initialized
  'untied': (WHOLE, FLAN),
  'states': ('T5Model', SIZES | {'feed_forward_proj': 'gated-silu'}),
  'encoder': ('T5EncoderModel', FLAN),
}


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """`plain(kind) -> Peer`, with their model in float64."""
  made = {}

  def make(kind):
    if kind not in made:
      architecture, fields = KINDS[kind]
      theirs = families.random_model(architecture, **fields)
      if kind == 'untied':
        noise = torch.randn((40, 24), generator=torch.Generator().manual_seed(1))
        theirs.lm_head.weight = torch.nn.Parameter(0.25 * noise)
      folder = tmp_path_factory.mktemp('t5')
      theirs.save_pretrained(folder)
      made[kind] = families.Peer(folder, theirs.double(), *interop.load(folder))
    return made[kind]

  return make


def pair(side):
  """A batch for the encoder and a shorter one for the decoder, padded on the other side."""
  other = {'left': 'right', 'right': 'left'}.get(side, side)
  return batch(40, 12, side), batch(40, 9, other)


def theirs_on(theirs, data):
  source, target = data
  given = {'input_ids': source.tokens, 'attention_mask': source.mask}
  if theirs.config.is_encoder_decoder:
    given |= {'decoder_input_ids': target.tokens[:, ::-1], 'decoder_attention_mask': target.mask}
  return families.outputs(copy.deepcopy(theirs).double(), **given)


def ours_on(model, params, data):
  source, target = data
  given = {}
  if model.config.decoder_layers:
    given = {'targets': target.tokens[:, ::-1], 'target_mask': target.mask}
  with jax.disable_jit():
    return np.asarray(model.apply(params, source.tokens, source.mask, **given))


def real(model, data):
  return data[1].mask if model.config.decoder_layers else data[0].mask


def error_of(peer, model, params, data):
  return distance(theirs_on(peer.theirs, data), ours_on(model, params, data), real(model, data))


@pytest.mark.parametrize('side', ['none', 'right', 'left', 'both'])
@pytest.mark.parametrize('kind', KINDS)
def test_outputs_agree(plain, kind, side):
  """Contract: within 1e-4 of the standard deviation, with padding on either side of both texts."""
  peer = plain(kind)
  error = error_of(peer, peer.model, peer.params, pair(side))
  print(f'T5, {kind}, padding {side}: {error:.1e} of the standard deviation')
  assert error < SAME


def test_heads_are_tied_and_scaled_as_transformers_does(plain, tmp_path):
  """By the tensors, whatever the field says; scaled by its own field, before that by the tie."""
  assert plain('first release').model.config.scaled and plain('first release').model.config.tied
  assert plain('tied').model.config.tied and not plain('tied').model.config.scaled
  peer, data = plain('untied'), pair('both')
  assert not peer.model.config.tied and not peer.model.config.scaled
  forms = [
    {'tie_word_embeddings': False, 'scale_decoder_outputs': ...},  # as transformers 4 wrote it
    {'tie_word_embeddings': False, 'scale_decoder_outputs': True},
    {'tie_word_embeddings': True, 'scale_decoder_outputs': ...},
  ]
  for number, form in enumerate(forms):
    folder = families.edited(peer, tmp_path / str(number), **form)
    want = theirs_on(families.load_theirs(folder, WHOLE), data)
    model, params = interop.load(folder)
    assert not model.config.tied
    assert distance(want, ours_on(model, params, data), data[1].mask) < SAME


TELLING = {
  'relative_attention_max_distance': 12,
  'layer_norm_epsilon': 0.2,
  'dense_act_fn': 'silu',
  'scale_decoder_outputs': True,
}
SHAPED = {
  'vocab_size': 41,
  'd_model': 25,
  'd_kv': 11,
  'd_ff': 21,
  'num_layers': 3,
  'num_decoder_layers': 2,
  'num_heads': 2,
  'relative_attention_num_buckets': 10,
  'is_gated_act': False,
}


def test_every_field_shows(plain, tmp_path):
  """Contract: with another value parity fails, and transformers reads the same value."""
  peer, data = plain('untied'), pair('both')
  plainer = {'dense_act_fn': ..., 'is_gated_act': ..., 'feed_forward_proj': 'gated-relu'}
  changes = [{field: value} for field, value in TELLING.items()] + [plainer]
  changes += [{**plainer, 'feed_forward_proj': 'gated-silu'}]
  families.check_fields(
    peer,
    tmp_path,
    WHOLE,
    changes,
    lambda model, params: ours_on(model, params, data),
    lambda theirs, got: distance(theirs_on(theirs, data), got, data[1].mask),
  )


def test_every_shape_is_checked(plain, tmp_path):
  """Contract: what contradicts the weights is refused."""
  families.check_shapes(plain('untied'), tmp_path, SHAPED)


def test_no_field_is_forgotten(plain):
  """Every field that we write is among those whose changes are tested."""
  others = {'feed_forward_proj', 'tie_word_embeddings'}
  silent = {'decoder_start_token_id', 'is_encoder_decoder'}
  written = set(T5.write_config(plain('untied').model.config))
  assert written - silent == {*TELLING, *SHAPED, *others}


@pytest.mark.parametrize('kind', KINDS)
def test_saved_as_it_was(plain, tmp_path, kind):
  """Contract: names, types and bytes of the tensors; with the source's configuration or without."""
  peer, data = plain(kind), pair('both')
  for name, source in (('with', peer.model.source), ('without', None)):
    interop.save_hf(tmp_path / name, dataclasses.replace(peer.model, source=source), peer.params)
    assert families.tensors(tmp_path / name) == families.tensors(peer.folder)
    again = families.load_theirs(tmp_path / name, KINDS[kind][0])
    want = theirs_on(peer.theirs, data)
    assert distance(want, theirs_on(again, data)) < 1e-6
    raw = json.loads((tmp_path / name / 'config.json').read_text())
    assert raw['architectures'] == [KINDS[kind][0]] and raw['model_type'] == 't5'
    assert interop.load(tmp_path / name)[0].config == peer.model.config
  before, after = peer.theirs.config.to_dict(), again.config.to_dict()
  differ = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
  meant = {'_name_or_path', 'decoder_start_token_id', 'torch_dtype', 'dtype', 'use_cache'}
  assert differ <= meant | ({'num_decoder_layers'} if kind == 'encoder' else set()), differ


@pytest.mark.parametrize(('dtype', 'shard'), [('bfloat16', '8KB'), ('float16', '1GB')])
def test_half_precision_and_shards(plain, tmp_path, dtype, shard):
  half = families.random_model(WHOLE, **SIZES).to(getattr(torch, dtype))
  half.save_pretrained(tmp_path / 'theirs', max_shard_size=shard)
  model, params = interop.load(tmp_path / 'theirs')
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {dtype}
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  data = pair('both')
  want = theirs_on(families.load_theirs(tmp_path / 'theirs', WHOLE), data)
  assert distance(want, ours_on(model, wide, data), data[1].mask) < SAME
  interop.save_hf(tmp_path / 'ours', model, params, max_shard_bytes=8000)
  assert families.tensors(tmp_path / 'ours') == families.tensors(tmp_path / 'theirs')


def test_copies_and_what_was_never_used(plain, tmp_path):
  """The first release's files hold the embedding three times, and a table of no use."""
  peer = plain('first release')
  folder = families.edited(peer, tmp_path / 'old')
  held = saved.load_file(folder / 'model.safetensors')
  held |= {
    f'{x}.embed_tokens.weight': held['shared.weight'].clone() for x in ('encoder', 'decoder')
  }
  held['lm_head.weight'] = held['shared.weight'].clone()
  unused = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  (folder / 'model.safetensors').unlink()
  saved.save_file(held | {unused: torch.ones(8, 3)}, folder / 'model.safetensors')
  with pytest.warns(UserWarning, match=f'1 tensors are left out.*{unused}'):
    model, params = interop.load(folder)
  assert model.config.tied
  assert jax.tree.all(jax.tree.map(np.array_equal, params, peer.params))


def test_buckets_are_those_of_transformers():
  from transformers.models.t5.modeling_t5 import T5Attention

  ahead = np.arange(-2000, 2001)
  for rows, distances in (
    (4, (3, 7, 50)),
    (8, (5, 7, 64)),
    (32, (20, 128, 777)),
    (100, (64, 1000)),
  ):
    for distance_ in distances:
      for causal in (True, False):
        want = T5Attention._relative_position_bucket(
          torch.tensor(ahead), not causal, rows, distance_
        )
        np.testing.assert_array_equal(_bucket(ahead, rows, distance_, causal), want.numpy())


def test_the_start_is_that_of_transformers(plain):
  peer = plain('untied')
  tokens = batch(40).tokens
  peer.theirs.config.decoder_start_token_id = peer.model.config.start
  want = peer.theirs._shift_right(torch.tensor(tokens).long())
  np.testing.assert_array_equal(models.shift_right(peer.model.config, jnp.asarray(tokens)), want)


@pytest.mark.parametrize('kind', ['first release', 'untied'])
def test_answers_agree(plain, kind):
  peer = plain(kind)
  data = batch(40, 12, 'left')
  want = peer.theirs.generate(
    torch.tensor(data.tokens).long(),
    attention_mask=torch.tensor(data.mask),
    do_sample=False,
    num_beams=1,
    max_new_tokens=10,
    use_cache=False,  # theirs wants as many layers in the decoder as in the encoder
    eos_token_id=7,
    pad_token_id=7,
    decoder_start_token_id=0,
  )[:, 1:]
  got = models.answer(peer.model, peer.params, data.tokens, data.mask, max_tokens=10, eos=7)
  np.testing.assert_array_equal(got[:, : want.shape[1]], want)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'feed_forward_proj': 'gelu-gated'}, ['feed_forward_proj', "'gelu-gated'"]),
    ({'feed_forward_proj': 'gated-mish', 'dense_act_fn': ...}, ['feed_forward_proj', 'mish']),
    ({'dense_act_fn': 'mish'}, ['dense_act_fn', 'mish', 'gelu_new']),
    ({'is_decoder': True}, ['is_decoder', 'True']),
    ({'relative_attention_num_buckets': 7}, ['relative_attention_num_buckets 7']),
    ({'relative_attention_max_distance': 4}, ['relative_attention_max_distance 4']),
    ({'architectures': ['T5ForSequenceClassification']}, ['T5ForSequenceClassification']),
    ({'architectures': ['T5ForTokenClassification']}, ['T5ForTokenClassification']),
    ({'layer_norm_epsilon': 0}, ['layer_norm_epsilon is 0']),
  ],
)
def test_what_is_not_computed_is_refused(plain, tmp_path, change, words):
  with pytest.raises(InputError) as error:
    interop.load(families.edited(plain('untied'), tmp_path / 'x', **change))
  message = str(error.value)
  assert '\n' not in message and all(word in message for word in words), message
