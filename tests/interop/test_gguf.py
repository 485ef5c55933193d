"""GGUF files: every architecture as its folder, every way to store numbers, and bad files."""

import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune import interop, losses, ops
from jaxtune.interop import gguf_file
from jaxtune.interop.families import family_named
from jaxtune.interop.gguf_header import read_header
from jaxtune.models import build
from jaxtune.typing import InputError
from tests.interop import gguf_files
from tests.interop.gguf_files import KINDS

SIZES = {
  'vocab_size': 24,
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 6,
  'max_position_embeddings': 32,
  'rms_norm_eps': 1e-5,
  'rope_theta': 5000.0,
  'tie_word_embeddings': False,
}
GEMMA = {
  'num_hidden_layers': 7,
  'query_pre_attn_scalar': 6,
  'sliding_window': 5,
  'tie_word_embeddings': True,
}
LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 4.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
}
YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 8,
  'beta_fast': 20.0,
  'beta_slow': 2.0,
}
CASES = {
  'llama': {'model_type': 'llama'},
  'llama with biases': {'model_type': 'llama', 'attention_bias': True, 'mlp_bias': True},
  'llama 3.1': {'model_type': 'llama', 'rope_theta': 500000.0, 'rope_scaling': LLAMA3},
  'smollm3': {'model_type': 'smollm3', 'num_hidden_layers': 5, 'tie_word_embeddings': True},
  'mixtral': {'model_type': 'mixtral', 'num_local_experts': 3, 'sliding_window': None},
  'qwen2': {'model_type': 'qwen2', 'rope_scaling': YARN},
  'qwen3': {'model_type': 'qwen3', 'rope_scaling': {'rope_type': 'linear', 'factor': 2.5}},
  'qwen3 moe': {
    'model_type': 'qwen3_moe',
    'num_experts': 3,
    'num_experts_per_tok': 2,
    'moe_intermediate_size': 10,
    'norm_topk_prob': True,
  },
  'gemma2': {
    'model_type': 'gemma2',
    **GEMMA,
    'rope_theta': 10000.0,  # the converter does not write it
    'attn_logit_softcapping': 12.5,
    'final_logit_softcapping': 7.0,
  },
  'gemma3': {
    'model_type': 'gemma3_text',
    **GEMMA,
    'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
  },
}


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def folder_of(path, **fields):
  """A folder with random parameters; returns it, its model, and its parameters."""
  raw = SIZES | fields
  model = build(family_named(raw['model_type'], 'raw').read_config(raw, 'raw'))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), model.shapes())
  interop.save_hf(path, model, params)
  return path, model, params


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """Metadata and tensors of a Llama with untied head."""
  path, _, _ = folder_of(tmp_path_factory.mktemp('plain') / 'hf', model_type='llama')
  raw, given = gguf_files.read(path)
  return gguf_files.fields(raw), gguf_files.tensors(raw, given)


def refused(path, *words):
  with pytest.raises(InputError) as error:
    interop.load(path)
  assert '\n' not in str(error.value)
  for word in (path.name, *words):
    assert word in str(error.value)


@pytest.mark.parametrize('name', CASES)
def test_the_same_model_in_both_files(tmp_path, name):
  path, model, params = folder_of(tmp_path / 'hf', **CASES[name])
  again, read = interop.load(gguf_files.convert(path, tmp_path / 'tiny.gguf'))
  assert again.config == model.config == interop.load(path)[0].config
  if model.config.norm_offset:  # what was added to a norm is rounded
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-7), params, read)
  else:
    same(params, read)


def test_other_divisors_of_the_rotary_frequencies(tmp_path, plain):
  metadata, tensors = plain
  freqs = {'rope_freqs.weight': np.array([1.0, 2.5, 7.0], 'f')}
  path = gguf_files.write(tmp_path / 'freqs.gguf', 'llama', metadata, tensors | freqs)
  rope = interop.load(path)[0].config.rope
  positions = np.arange(32)[None]
  got = ops.rope_table(positions, 6, rope)
  angles = positions[..., None] * 5000.0 ** (-np.arange(3) / 3) / freqs['rope_freqs.weight']
  np.testing.assert_allclose(got.cos, np.cos(angles), atol=1e-5)
  np.testing.assert_allclose(got.sin, np.sin(angles), atol=1e-5)
  ones = {'rope_freqs.weight': np.ones(3, 'f')}
  path = gguf_files.write(tmp_path / 'ones.gguf', 'llama', metadata, tensors | ones)
  assert interop.load(path)[0].config.rope == ops.Rope(5000.0)


def test_what_llama_cpp_assumes_of_gemma(tmp_path):
  """No window in the file: none in Gemma 3. The largest ones scale scores by another width."""
  path, model, _ = folder_of(tmp_path / 'hf', **CASES['gemma3'])
  raw, given = gguf_files.read(path)
  fields, tensors = gguf_files.fields(raw), gguf_files.tensors(raw, given)
  del fields['gemma3.attention.sliding_window']
  whole = gguf_files.write(tmp_path / 'whole.gguf', 'gemma3', fields, tensors)
  assert interop.load(whole)[0].config == dataclasses.replace(model.config, window=0, local=())
  path, *_ = folder_of(tmp_path / 'wide', **CASES['gemma2'] | {'num_hidden_layers': 46})
  raw, given = gguf_files.read(path)
  fields, tensors = gguf_files.fields(raw), gguf_files.tensors(raw, given)
  wide = gguf_files.write(tmp_path / 'wide.gguf', 'gemma2', fields, tensors)
  assert interop.load(wide)[0].config.attention_scale == pytest.approx((16 / 4) ** -0.5)


COMMON = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'IQ4_NL', 'IQ4_XS')
COMMON += ('Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K')


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.name)
def test_every_way_to_store_numbers(tmp_path, plain, kind):
  """As the package reads it whole, row by row, or refused by name; the common ones are read."""
  metadata, tensors = plain
  block, size = gguf.GGML_QUANT_SIZES[kind]
  width, rows = 2 * block, 24
  # Bytes that make float16 numbers below one, wherever a format has them.
  data = np.random.default_rng(0).integers(0, 60, (rows, 2 * size)).astype(np.uint8)
  stored = tensors | {'token_embd.weight': data}
  path = tmp_path / 'kind.gguf'
  gguf_files.write(path, 'llama', metadata, stored, {'token_embd.weight': kind})
  try:
    want = gguf.quants.dequantize(data, kind)
  except NotImplementedError:
    assert kind.name not in COMMON
    refused(path, 'token_embd.weight', kind.name, 'Q8_0')
    return
  assert want.shape == (rows, width) and np.isfinite(want).all()
  if kind.name in COMMON:
    assert np.abs(want).max() > 0
  tensor = gguf_file.open_tensor(read_header(path), 'token_embd.weight')
  np.testing.assert_array_equal(tensor.read(), want)
  np.testing.assert_array_equal(tensor.entries(width, 3 * width).reshape(2, width), want[1:3])


def test_quantized_rows_come_in_their_order(tmp_path, monkeypatch):
  """Every matrix is within half a step of its block of 32, q and k rows too; one pass each."""
  monkeypatch.setattr('jaxtune.interop.tensors._BLOCK', 1024)  # several blocks a tensor
  path, _, params = folder_of(tmp_path / 'hf', model_type='llama', hidden_size=32)
  raw, given = gguf_files.read(path)
  stored, kinds = gguf_files.tensors(raw, given), {}
  for name, value in stored.items():
    if value.ndim == 2 and value.shape[1] % 32 == 0:
      stored[name], kinds[name] = gguf.quants.quantize(value, KINDS.Q8_0), KINDS.Q8_0
  path = gguf_files.write(tmp_path / 'q.gguf', 'llama', gguf_files.fields(raw), stored, kinds)
  _, read = interop.load(path)
  for name in ('q', 'k', 'v'):
    want, got = (np.asarray(p['decoder']['0-1']['attn'][name]) for p in (params, read))
    assert 0 < np.abs(want - got).max() <= np.abs(want).max() / 254 + 1e-3
  assert interop.load(path, dtype='bfloat16')[1]['norm']['scale'].dtype == jnp.bfloat16


def test_other_files_are_refused(tmp_path, plain):
  metadata, tensors = plain

  def file(architecture='llama', less=None, more=None, **fields):
    named = {k.replace('llama.', f'{architecture}.'): v for k, v in metadata.items()}
    stored = {k: x for k, x in tensors.items() if k != less} | (more or {})
    fields = {k.replace('__', '.'): v for k, v in fields.items()}
    return gguf_files.write(tmp_path / 'x.gguf', architecture, named | fields, stored)

  known = 'known: gemma2, gemma3, llama, qwen2, qwen3, qwen3moe, smollm3'
  for architecture in ('gemma', 'phi3', 'gpt2', 'mamba', 'qwen2moe'):
    refused(file(architecture), repr(architecture), known)
  refused(file(llama__rope__scaling__type='longrope'), 'rope.scaling.type', "'longrope'", 'yarn')
  refused(file(llama__rope__dimension_count=4), 'llama.rope.dimension_count is 4', '6')
  refused(file(llama__attention__value_length=8), 'llama.attention.value_length is 8')
  refused(file(llama__attention__sliding_window=8), 'llama.attention.sliding_window is 8')
  refused(file(llama__attention__causal=False), 'llama.attention.causal is False')
  refused(file(llama__logit_scale=2.0), 'llama.logit_scale is 2.0')
  refused(file(llama__block_count=None), "'llama.block_count'")
  refused(file(llama__block_count=10**6), 'llama.block_count is 1000000', 'tensors')
  refused(file(llama__block_count=10**9), 'llama.block_count is 1000000000')
  refused(file(llama__block_count=3), 'blk.2.attn_norm.weight')
  refused(file(llama__embedding_length=18), '[12, 16]', '[12, 18]')
  refused(file(llama__attention__head_count='four'), "head_count is 'four'")
  refused(file(llama__attention__head_count_kv=[2, 1]), 'head_count_kv is [2, 1]')
  refused(file(llama__attention__head_count=10**7), 'attn_q.weight has 24 rows', '10000000 heads')
  refused(file(split__count=3), 'one of 3 parts', 'llama-gguf-split')
  refused(file(less='token_embd.weight'), 'lacks the tensor token_embd.weight')
  refused(file(less='blk.1.ffn_up.weight'), 'blk.1.ffn_up.weight')
  refused(file(more={'blk.0.attn_qq.weight': np.ones(4, 'f')}), 'blk.0.attn_qq.weight', 'attn_q')
  refused(file(more={'output_norm.weight': np.ones(17, 'f')}), 'output_norm.weight', '[17]')
  both = file(
    more={'rope_freqs.weight': np.array([1, 2, 2], 'f')},
    llama__rope__scaling__type='linear',
    llama__rope__scaling__factor=2.0,
  )
  refused(both, 'rope_freqs.weight', 'linear')
  text = tmp_path / 'text.gguf'
  for content in ('not a model', ''):
    text.write_text(content)
    refused(text, 'not a GGUF file')


def test_files_cut_short(tmp_path, plain):
  path = gguf_files.write(tmp_path / 'tiny.gguf', 'llama', *plain)
  data = path.read_bytes()
  for length in (4, 10, 24, 60, 200, 600, 1500, len(data) // 2, len(data) - 40):
    path.write_bytes(data[:length])
    refused(path, 'cut short')


def test_lying_headers(tmp_path, plain):
  """Counts, lengths, types and offsets that the file does not hold cost no time and no memory."""
  path = gguf_files.write(tmp_path / 'tiny.gguf', 'llama', *plain)
  data = path.read_bytes()
  name = data.index(b'token_embd.weight') + len('token_embd.weight')
  key = data.index(b'llama.block_count') + len('llama.block_count')
  huge = (2**63 + 11).to_bytes(8, 'little')

  def lie(at, lie, *words):
    path.write_bytes(data[:at] + lie + data[at + len(lie) :])
    refused(path, *words)

  lie(4, b'\x09', 'version 9')
  lie(4, b'\x00\x00\x00\x03', 'big-endian')
  for at in (8, 16, 24):  # counts of tensors and of fields, length of the first key
    lie(at, huge, 'damaged')
  lie(key, b'\x63', 'type 99')
  lie(key, b'\x09', 'damaged')  # a list, whose type and length are the number and what follows
  lie(name, b'\xff', '255 axes')
  lie(name + 4, huge, 'damaged')  # its rows
  lie(name + 12, huge, 'damaged')  # their number
  lie(name + 20, b'\x63', 'token_embd.weight is of type 99', 'Q8_0')
  lie(name + 24, huge, 'damaged')  # its offset
  lie(name + 24, b'\x20', 'token_embd.weight', 'does not end before')  # into the next
  twice = data.replace(b'blk.0.attn_q.weight', b'blk.0.attn_k.weight')
  path.write_bytes(twice)
  refused(path, "'blk.0.attn_k.weight'", 'twice')


@settings(max_examples=100, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_bytes(tmp_path_factory, plain, changes):
  """A file is read or refused in one line, whatever its header says."""
  path = tmp_path_factory.mktemp('bytes') / 'x.gguf'
  words = {'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.tokens': ['a', 'b']}
  gguf_files.write(path, 'llama', plain[0] | words, plain[1])
  data = bytearray(path.read_bytes())
  header = min(stored.offset for stored in read_header(path).tensors.values())
  for place, value in changes:
    data[int(place * (header - 1))] = value
  path.write_bytes(data)
  for use in (interop.load, interop.load_tokenizer):
    try:
      use(path)
    except InputError as error:
      assert path.name in str(error) and '\n' not in str(error)


@pytest.mark.slow
def test_smollm2_speaks_english(smollm2):
  """FIELD: about 4.2 nats/token on a novel; a wrong order of q and k gives about 10."""
  model, params = interop.load(smollm2)
  tokenizer = interop.load_tokenizer(smollm2)

  def following(text):
    logits = model.apply(params, jnp.asarray([tokenizer.encode(text).ids]))
    return tokenizer.decode([int(logits[0, -1].argmax())])

  assert following('The capital of France is') == ' Paris'
  text = (
    'It was a dark and stormy night; the rain fell in torrents, except at occasional intervals, '
    'when it was checked by a violent gust of wind which swept up the streets.'
  )
  batch = {'tokens': jnp.asarray([tokenizer.encode(text).ids])}
  loss = losses.causal_lm(model)(params, batch, None)
  assert float(loss.total / loss.weight) < 3.5
