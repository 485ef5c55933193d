"""Decoders that transformers saved compute the same numbers here, and ours there."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import interop, losses
from jaxtune.interop.families import FAMILIES
from tests.interop import decoders, families
from tests.interop.families import SAME, batch, distance, ours_on, theirs_on

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

# Fields that `write_config` repeats in the words of transformers 4, or that change no number.
_REPEATED = {'rope_theta', 'rope_scaling', 'partial_rotary_factor', 'rope_local_base_freq'}
_REPEATED |= {'rotary_emb_base', 'rotary_pct', 'num_experts', 'rope_parameters'}
_SILENT = {'initializer_range', 'max_position_embeddings', 'original_max_position_embeddings'}


@pytest.fixture(scope='module')
def make(tmp_path_factory):
  return families.maker(tmp_path_factory.mktemp('peers'))


@pytest.fixture(scope='module')
def plain(make):
  return lambda family: make(decoders.architecture(family), **decoders.fields(family))


def names(changes):
  return '-'.join(f'{key}={value}' for key, value in changes.items())[:60]


@pytest.mark.parametrize('side', ['none', 'right', 'left'])
@pytest.mark.parametrize('family', decoders.PLAIN)
def test_logits_agree(plain, family, side):
  """Contract: within 1e-4 of the logits' standard deviation, with padding on either side."""
  peer = plain(family)
  data = batch(40, side=side)
  want = theirs_on(peer.theirs, data)
  error = distance(want, ours_on(peer.model, peer.params, data), data.mask)
  print(f'{family}, padding {side}: {error:.1e} of the standard deviation')
  assert error < SAME


@pytest.mark.parametrize('family', decoders.PLAIN)
def test_cache_agrees(plain, family):
  """Contract: a text in pieces, from a cache with more slots, as transformers computes it whole."""
  peer = plain(family)
  data = batch(40, side='left')
  cache, parts = peer.model.start_cache(peer.params, 3, 15, jnp.float32), []
  with jax.disable_jit():
    for piece in (slice(0, 4), slice(4, 8), slice(8, 12)):
      x, cache = peer.model.extend(peer.params, data.tokens[:, piece], cache, data.mask[:, piece])
      parts.append(peer.model.head(peer.params, x))
  error = distance(theirs_on(peer.theirs, data), np.concatenate(parts, axis=1), data.mask)
  print(f'{family}, cache: {error:.1e}')
  assert error < SAME


@pytest.mark.parametrize(('family', 'changes'), decoders.UNUSUAL, ids=lambda x: str(x)[:40])
def test_unusual_models_agree(make, tmp_path, family, changes):
  """Logits, what `write_config` tells `read_config`, and what it tells transformers."""
  kind = decoders.architecture(family)
  peer = make(kind, **decoders.fields(family, **changes))
  data = batch(40, side='both')
  want = theirs_on(peer.theirs, data)
  error = distance(want, ours_on(peer.model, peer.params, data), data.mask)
  print(f'{family}, {names(changes)}: {error:.1e}')
  assert error < SAME

  config = peer.model.config
  found = FAMILIES[config.model_type]
  written = json.loads(json.dumps(found.write_config(config)))
  assert found.read_config(written | {'model_type': config.model_type}, 'config.json') == config

  interop.save_hf(tmp_path / 'ours', dataclasses.replace(peer.model, source=None), peer.params)
  alone = peer._replace(folder=tmp_path / 'ours')
  ids = {'pad_token_id': 0}  # a tokenizer's matter, and these toys have none
  again = families.load_theirs(families.edited(alone, tmp_path / 'ids', **ids), kind)
  assert distance(want, theirs_on(again, data), data.mask) < SAME


@pytest.mark.parametrize(('family', 'changes', 'others'), decoders.TELLING)
def test_every_field_shows(make, tmp_path, family, changes, others):
  """Contract: with another value parity fails, unless transformers reads the same value."""
  kind = decoders.architecture(family)
  peer = make(kind, **decoders.fields(family, **changes))
  data = batch(40, side='both')
  want = theirs_on(peer.theirs, data)
  assert distance(want, ours_on(peer.model, peer.params, data), data.mask) < SAME
  families.check_fields(
    peer,
    tmp_path,
    kind,
    [{field: value} for field, value in others.items()],
    lambda model, params: ours_on(model, params, data),
    lambda theirs, got: distance(theirs_on(theirs, data), got, data.mask),
  )


@pytest.mark.parametrize('family', decoders.PLAIN)
def test_every_shape_is_checked(plain, tmp_path, family):
  """Contract: what contradicts the weights is refused."""
  families.check_shapes(plain(family), tmp_path, decoders.SHAPED[family])


@pytest.mark.parametrize('family', decoders.PLAIN)
def test_no_field_is_forgotten(plain, family):
  """Every field that we write is among those whose changes are tested."""
  config = plain(family).model.config
  changed = set(decoders.SHAPED[family])
  for other, _, others in decoders.TELLING:
    changed |= {name.split('.')[0] for name in others} if other == family else set()
  written = set(FAMILIES[config.model_type].write_config(config))
  use = {'use_sliding_window'}  # goes with the window; alone it contradicts `layer_types`
  use = set() if family == 'qwen3_moe' else use
  assert written - _REPEATED - _SILENT - use <= changed
  assert 'rope_parameters' in changed or family == 'gpt2'


@pytest.mark.parametrize('family', decoders.PLAIN)
def test_saved_as_it_was(plain, tmp_path, family):
  """Contract: the names, types and bytes of the original's tensors, and the same numbers."""
  peer = plain(family)
  data = batch(40, side='both')
  kind = decoders.architecture(family)
  interop.save_hf(tmp_path / 'ours', peer.model, peer.params)
  assert families.tensors(tmp_path / 'ours') == families.tensors(peer.folder)
  again = families.load_theirs(tmp_path / 'ours', kind)
  assert distance(theirs_on(peer.theirs, data), theirs_on(again, data)) < 1e-6
  # What it means is all that may differ, not what it says: another form of the same fields.
  before, after = peer.theirs.config.to_dict(), again.config.to_dict()
  forms = {'num_experts', 'decoder_sparse_step', 'mlp_only_layers', '_name_or_path'}
  forms |= {'no_rope_layer_interval', 'max_window_layers', 'rope_theta', 'rope_scaling'}
  forms |= {'original_max_position_embeddings', 'n_inner', 'rotary_pct', 'rotary_emb_base'}
  forms |= {'rope_local_base_freq', 'partial_rotary_factor', 'head_dim'}
  differ = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
  assert differ <= forms | {'torch_dtype'}, differ - forms


@pytest.mark.parametrize('family', decoders.PLAIN)
def test_half_precision_and_shards(tmp_path, family):
  """bfloat16 in shards and float16: the types stay, the numbers are those of the file."""
  data = batch(40, side='both')
  kind = decoders.architecture(family)
  for dtype, shard in (('bfloat16', '8KB'), ('float16', '1GB')):
    folder = tmp_path / dtype
    half = families.random_model(kind, **decoders.fields(family)).to(getattr(torch, dtype))
    half.save_pretrained(folder, max_shard_size=shard)
    assert (folder / 'model.safetensors.index.json').exists() == (shard == '8KB')
    model, params = interop.load(folder)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {dtype}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    want = theirs_on(families.load_theirs(folder, kind), data)
    assert distance(want, ours_on(model, wide, data), data.mask) < SAME
    interop.save_hf(tmp_path / f'{dtype}-ours', model, params, max_shard_bytes=8000)
    assert families.tensors(tmp_path / f'{dtype}-ours') == families.tensors(folder)


@pytest.mark.parametrize('head', ['ForSequenceClassification', 'ForTokenClassification'])
@pytest.mark.parametrize('family', decoders.PLAIN)
def test_classifiers_agree(make, tmp_path, family, head):
  if (family, head) == ('gemma3', 'ForTokenClassification'):
    pytest.skip('transformers has none')
  kind = decoders.architecture(family, head)
  peer = make(kind, **decoders.fields(family, num_labels=3))
  assert peer.model.config.outputs == 3
  interop.save_hf(tmp_path / 'ours', peer.model, peer.params)
  again = families.load_theirs(tmp_path / 'ours', kind)
  for side in ('right', 'left'):
    data = batch(40, side=side)
    real = data.mask if peer.model.config.each_token else None
    want = theirs_on(peer.theirs, data)
    assert distance(want, ours_on(peer.model, peer.params, data), real) < SAME
    assert distance(want, theirs_on(again, data), real) < 1e-6
  assert families.tensors(tmp_path / 'ours') == families.tensors(peer.folder)


@pytest.mark.parametrize('family', decoders.PLAIN)
def test_bodies_agree(make, tmp_path, family):
  """A folder without a head gives hidden states, and its tensors have no prefix."""
  peer = make(decoders.architecture(family, 'Model'), **decoders.fields(family))
  assert peer.model.task == 'features'
  data = batch(40, side='both')
  want = theirs_on(peer.theirs, data)
  assert distance(want, ours_on(peer.model, peer.params, data), data.mask) < SAME
  interop.save_hf(tmp_path / 'ours', peer.model, peer.params)
  assert families.tensors(tmp_path / 'ours') == families.tensors(peer.folder)


@pytest.mark.parametrize('family', ['llama', 'qwen3', 'gemma3', 'qwen3_moe'])
def test_gradients_agree(plain, tmp_path, family):
  """Contract: of the loss a token to 1e-3, by the names of the tensors that they belong to."""
  peer = plain(family)
  data = batch(40, side='right')
  labels = torch.tensor(np.where(data.mask, data.tokens, -100)).long()
  peer.theirs.zero_grad()
  peer.theirs(
    torch.tensor(data.tokens).long(), attention_mask=torch.tensor(data.mask), labels=labels
  ).loss.backward()
  objective = losses.causal_lm(peer.model)
  supervised = data.mask & (np.arange(12)[None] > 0)
  given = {'tokens': data.tokens, 'mask': data.mask, 'supervised': supervised}

  def loss(params):
    found = objective(params, given, None)
    return found.total / found.weight

  interop.save_hf(tmp_path / 'gradients', peer.model, jax.jit(jax.grad(loss))(peer.params))
  parameters, worst = dict(peer.theirs.named_parameters()), 0.0
  packed = families.load_theirs(tmp_path / 'gradients', decoders.architecture(family))
  for name, got in packed.named_parameters():
    want = parameters[name].grad
    worst = max(worst, float((got - want).abs().max() / want.abs().max()))
  print(f'{family}, gradients: {worst:.1e} of the largest')
  assert worst < 1e-3
