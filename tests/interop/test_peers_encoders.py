"""Encoders that transformers saved compute the same numbers here, and ours there."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import interop, models, ops
from jaxtune.interop.families import FAMILIES
from tests.interop import encoders, families
from tests.interop.families import SAME, distance

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

# Fields that `write_config` repeats in the words of transformers 4, or that change no number.
_REPEATED = {'global_rope_theta', 'local_rope_theta'}
_SILENT = {'initializer_range'}


@pytest.fixture(scope='module')
def make(tmp_path_factory):
  return families.maker(tmp_path_factory.mktemp('peers'))


@pytest.fixture(scope='module')
def plain(make):
  return lambda family, head='ForMaskedLM': make(
    encoders.architecture(family, head), **encoders.fields(family, num_labels=5)
  )


def inputs(config, side):
  """Tokens, mask and, where the model has them, types; padding is the model's own token."""
  data = families.batch(40, side=side)
  pad = max(config.first_position - 1, 0)
  tokens = np.where(data.tokens == pad, pad + 1, data.tokens)
  tokens = np.where(data.mask, tokens, pad).astype(np.int32)
  types = np.random.default_rng(1).integers(0, config.types, tokens.shape) if config.types else None
  return tokens, data.mask, types


def theirs_on(theirs, given):
  tokens, mask, types = given
  return families.outputs(theirs, input_ids=tokens, attention_mask=mask, token_type_ids=types)


def ours_on(model, params, given):
  tokens, mask, types = given
  with jax.disable_jit():
    return np.asarray(model.apply(params, tokens, mask, types=types))


def worst(peer, given, got):
  """Of real tokens, or of texts."""
  real = given[1] if got.ndim == 3 else None
  return distance(theirs_on(peer, given), got, real)


@pytest.mark.parametrize('head', encoders.HEADS)
@pytest.mark.parametrize('family', encoders.PLAIN)
def test_outputs_agree(plain, tmp_path, family, head):
  """Contract: within 1e-4 of their standard deviation, with padding on either side; saved too."""
  peer = plain(family, head)
  interop.save_hf(tmp_path / 'ours', peer.model, peer.params)
  assert families.tensors(tmp_path / 'ours') == families.tensors(peer.folder)
  again = families.load_theirs(tmp_path / 'ours', encoders.architecture(family, head))
  before, after = peer.theirs.config.to_dict(), again.config.to_dict()
  differ = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
  known = {'dtype', '_name_or_path', 'global_rope_theta', 'local_rope_theta', 'problem_type'}
  assert differ <= known | {'local_attention'}, differ
  for side in ('none', 'right', 'left', 'both'):
    given = inputs(peer.model.config, side)
    error = worst(peer.theirs, given, ours_on(peer.model, peer.params, given))
    print(f'{family} {head}, padding {side}: {error:.1e} of the standard deviation')
    assert error < SAME
    assert worst(peer.theirs, given, theirs_on(again, given)) < 1e-6


@pytest.mark.parametrize('family', ['bert', 'roberta', 'modernbert'])
def test_without_a_mask_and_with_positions(plain, family):
  """No mask, as for texts of one length; positions of one's own, as in packed rows."""
  peer = plain(family)
  tokens, _, types = inputs(peer.model.config, 'none')
  given = {'input_ids': tokens, 'token_type_ids': types}
  with jax.disable_jit():
    got = peer.model.apply(peer.params, tokens, types=types)
    assert distance(families.outputs(peer.theirs, **given), got) < SAME
    places = np.arange(12, dtype=np.int32)[None, ::-1].repeat(3, axis=0)
    got = peer.model.apply(peer.params, tokens, types=types, positions=places)
  places = places + peer.model.config.first_position
  assert distance(families.outputs(peer.theirs, **given, position_ids=places), got) < SAME


@pytest.mark.parametrize(('family', 'head', 'changes'), encoders.UNUSUAL, ids=lambda x: str(x)[:40])
def test_unusual_models_agree(make, tmp_path, family, head, changes):
  """Outputs, what `write_config` tells `read_config`, and what it tells transformers."""
  kind = encoders.architecture(family, head)
  peer = make(kind, **encoders.fields(family, **changes))
  given = inputs(peer.model.config, 'left')
  error = worst(peer.theirs, given, ours_on(peer.model, peer.params, given))
  print(f'{family} {head} {changes}: {error:.1e}')
  assert error < SAME

  config = dataclasses.replace(peer.model.config, outputs=0, masked_lm=False)
  found = FAMILIES[config.model_type]
  written = json.loads(json.dumps(found.write_config(config)))
  assert found.read_config(written, 'config.json') == config

  interop.save_hf(tmp_path / 'ours', dataclasses.replace(peer.model, source=None), peer.params)
  alone = peer._replace(folder=tmp_path / 'ours')
  ids = {'pad_token_id': peer.theirs.config.pad_token_id}  # a tokenizer's matter, but for RoBERTa
  again = families.load_theirs(families.edited(alone, tmp_path / 'ids', **ids), kind)
  assert worst(peer.theirs, given, theirs_on(again, given)) < SAME


@pytest.mark.parametrize('family', ['bert', 'roberta'])
def test_untied_matrices(make, tmp_path, family):
  """Transformers keeps an unused bias beside that of an untied matrix; here it is left out."""
  kind = encoders.architecture(family, 'ForMaskedLM')
  with pytest.warns(UserWarning, match=r'1 tensors are left out.*\.bias'):
    peer = make(kind, **encoders.fields(family, tie_word_embeddings=False))
  given = inputs(peer.model.config, 'right')
  assert worst(peer.theirs, given, ours_on(peer.model, peer.params, given)) < SAME
  interop.save_hf(tmp_path / 'ours', peer.model, peer.params)
  loaded = getattr(transformers, kind).from_pretrained
  again = loaded(tmp_path / 'ours', attn_implementation='eager').eval()
  assert worst(peer.theirs, given, theirs_on(again, given)) < 1e-6
  unused = set(families.tensors(peer.folder)) ^ set(families.tensors(tmp_path / 'ours'))
  assert unused <= {'cls.predictions.bias', 'lm_head.bias'} and len(unused) == 1


@pytest.mark.parametrize(('family', 'head', 'changes', 'others'), encoders.TELLING)
def test_every_field_shows(make, tmp_path, family, head, changes, others):
  """Contract: with another value parity fails, unless transformers reads the same value."""
  kind = encoders.architecture(family, head)
  peer = make(kind, **encoders.fields(family, num_labels=5, **changes))
  given = inputs(peer.model.config, 'right')
  assert worst(peer.theirs, given, ours_on(peer.model, peer.params, given)) < SAME
  families.check_fields(
    peer,
    tmp_path,
    kind,
    [{field: value} for field, value in others.items()],
    lambda model, params: ours_on(model, params, given),
    lambda theirs, got: worst(theirs, given, got),
  )


@pytest.mark.parametrize('family', encoders.PLAIN)
def test_every_shape_is_checked(plain, tmp_path, family):
  """Contract: what contradicts the weights is refused."""
  families.check_shapes(plain(family), tmp_path, encoders.SHAPED[family])


@pytest.mark.parametrize('family', encoders.PLAIN)
def test_no_field_is_forgotten(plain, family):
  """Every field that we write is among those whose changes are tested."""
  changed = set(encoders.SHAPED[family])
  for other, _, _, others in encoders.TELLING:
    changed |= {name.split('.')[0] for name in others} if other == family else set()
  written = set(FAMILIES[family].write_config(plain(family).model.config))
  silent = _SILENT | ({'max_position_embeddings'} if family == 'modernbert' else set())
  assert written - _REPEATED - silent <= changed


@pytest.mark.parametrize('family', encoders.PLAIN)
def test_half_precision_and_shards(tmp_path, family):
  """bfloat16 in shards and float16: the types stay, the numbers are those of the file."""
  kind = encoders.architecture(family, 'ForTokenClassification')
  for dtype, shard in (('bfloat16', '8KB'), ('float16', '1GB')):
    folder = tmp_path / dtype
    half = families.random_model(kind, **encoders.fields(family)).to(getattr(torch, dtype))
    half.save_pretrained(folder, max_shard_size=shard)
    assert (folder / 'model.safetensors.index.json').exists() == (shard == '8KB')
    model, params = interop.load(folder)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {dtype}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    given = inputs(model.config, 'right')
    assert worst(families.load_theirs(folder, kind), given, ours_on(model, wide, given)) < SAME
    interop.save_hf(tmp_path / f'{dtype}-ours', model, params, max_shard_bytes=8000)
    assert families.tensors(tmp_path / f'{dtype}-ours') == families.tensors(folder)


@pytest.mark.parametrize('head', ['ForMaskedLM', 'ForSequenceClassification'])
def test_gradients_agree(plain, tmp_path, head):
  """Contract: BERT's, of the mean loss to 1e-3, by the names of the tensors that they belong to."""
  peer = plain('bert', head)
  tokens, mask, types = inputs(peer.model.config, 'right')
  if head == 'ForMaskedLM':
    labels = np.where(mask, (tokens * 7 + 3) % 40, -100)
  else:
    labels = np.array([1, 4, 0])
  peer.theirs.zero_grad()
  given = {'input_ids': tokens, 'token_type_ids': types, 'labels': labels}
  given = {key: torch.tensor(x).long() for key, x in given.items()}
  peer.theirs(**given, attention_mask=torch.tensor(mask)).loss.backward()
  weights = (labels.reshape(-1) >= 0).astype(np.float32)

  def loss(params):
    outputs = peer.model.apply(params, tokens, mask, types=types)
    flat = outputs.reshape(-1, outputs.shape[-1])
    return ops.cross_entropy(flat, labels.reshape(-1), weights).nats / weights.sum()

  interop.save_hf(tmp_path / 'gradients', peer.model, jax.jit(jax.grad(loss))(peer.params))
  parameters = dict(peer.theirs.named_parameters())
  packed = families.load_theirs(tmp_path / 'gradients', encoders.architecture('bert', head))
  largest = max(float(x.grad.abs().max()) for x in parameters.values() if x.grad is not None)
  error = 0.0
  for name, got in packed.named_parameters():
    want = parameters[name].grad
    if name.endswith('key.bias'):  # exactly zero: it moves all scores of a query alike
      assert float(got.abs().max()) < 1e-5 * largest
      continue
    error = max(error, float((got - want).abs().max() / want.abs().max()))
  print(f'BERT {head}, gradients: {error:.1e} of the largest')
  assert error < 1e-3


@pytest.mark.parametrize('each_token', [False, True])
@pytest.mark.parametrize('family', encoders.PLAIN)
def test_fresh_classifiers_open_there(plain, tmp_path, family, each_token):
  """`models.classifier` on a model for masked tokens is the class that transformers has."""
  peer = plain(family)
  larger = dataclasses.replace(peer.model.config, init_scale=0.3)
  model = dataclasses.replace(peer.model, config=larger)
  model, params = models.classifier(jax.random.key(0), model, peer.params, 3, each_token)
  interop.save_hf(tmp_path / 'ours', model, params)
  head = 'ForTokenClassification' if each_token else 'ForSequenceClassification'
  theirs = families.load_theirs(tmp_path / 'ours', encoders.architecture(family, head))
  given = inputs(model.config, 'right')
  assert worst(theirs, given, ours_on(model, params, given)) < SAME


def test_embeddings_of_minilm(minilm):
  """As the model's card computes them with transformers: mean of the real tokens, normalized."""
  peer = transformers.AutoModel.from_pretrained(minilm).eval()
  tokenizer = interop.load_tokenizer(minilm)
  tokenizer.enable_padding(pad_id=0)
  encodings = tokenizer.encode_batch(['This is an example sentence', 'Each sentence is converted'])
  tokens = np.array([e.ids for e in encodings], np.int32)
  mask = np.array([e.attention_mask for e in encodings], bool)
  with torch.no_grad():
    states = peer(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())[0]
  wide = torch.tensor(mask)[:, :, None].expand(states.size()).float()
  mean = (states * wide).sum(1) / torch.clamp(wide.sum(1), min=1e-9)
  want = torch.nn.functional.normalize(mean, p=2, dim=1).numpy()
  got = models.embed(*interop.load(minilm), tokens, mask, *interop.load_pooling(minilm))
  np.testing.assert_allclose(got, want, atol=2e-6)
