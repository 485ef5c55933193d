"""GGUF files of the Llama family: the numbers, the order of q and k, and bad files."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import interop, losses
from jaxtune.typing import InputError

gguf = pytest.importorskip('gguf')

RENAMED = {
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
  'model.layers.': 'blk.',
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
}


def interleaved(w, heads):
  """The order in which llama.cpp's converter stores the rows of q and k."""
  return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def write(path, tensors, architecture='llama', quantize=None, extra=None, width=16):
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_block_count(3)
  writer.add_context_length(32)
  writer.add_embedding_length(width)
  writer.add_feed_forward_length(24)
  writer.add_head_count(4)
  writer.add_head_count_kv(2)
  writer.add_key_length(6)
  writer.add_rope_dimension_count(6)
  writer.add_rope_freq_base(5000.0)
  writer.add_layer_norm_rms_eps(1e-6)
  for key, value in (extra or {}).items():
    writer.add_string(key, value)
  for name, value in tensors.items():
    for theirs, stored in RENAMED.items():
      name = name.replace(theirs, stored)
    if value.ndim == 2 and re.search('attn_[qk]', name):
      value = interleaved(value, 4 if 'attn_q' in name else 2)
    if quantize is not None and value.ndim == 2 and value.shape[1] % 32 == 0:
      value = gguf.quants.quantize(value, quantize)
      writer.add_tensor(name, value, raw_dtype=quantize)
    else:
      writer.add_tensor(name, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def refused(path, *words):
  with pytest.raises(InputError) as error:
    interop.load(path)
  assert '\n' not in str(error.value)
  for word in (path.name, *words):
    assert word in str(error.value)


@pytest.mark.parametrize('tied', [True, False])
def test_the_same_model_in_both_files(llama, tmp_path, tied):
  model, params = interop.load(llama(tie_word_embeddings=tied))
  path = write(tmp_path / 'tiny.gguf', llama.tensors)
  again, read = interop.load(path)
  assert again.config == model.config
  jax.tree.map(np.testing.assert_array_equal, params, read)
  assert interop.load(path, dtype='bfloat16')[1]['norm']['scale'].dtype == jnp.bfloat16


def test_quantized_rows_are_dequantized_in_place(llama, tmp_path, monkeypatch):
  """Every matrix is within half a step of its block of 32, q and k rows in their order."""
  monkeypatch.setattr('jaxtune.interop.gguf_file._BLOCK', 128)  # several blocks a tensor
  _, params = interop.load(llama(hidden_size=32))
  kind = gguf.GGMLQuantizationType.Q8_0
  _, read = interop.load(write(tmp_path / 'tiny.gguf', llama.tensors, quantize=kind, width=32))
  q, q8 = (np.asarray(p['decoder']['0-2']['attn']['q']) for p in (params, read))
  assert 0 < np.abs(q - q8).max() <= np.abs(q).max() / 127
  e, e8 = (np.asarray(p['embed']['tokens']) for p in (params, read))
  assert 0 < np.abs(e - e8).max() <= np.abs(e).max() / 127


def test_other_files_are_refused(llama, tmp_path):
  llama()
  tensors = llama.tensors
  refused(write(tmp_path / 'other.gguf', tensors, 'mamba'), "'mamba'", 'known: llama')
  scaled = {'llama.rope.scaling.type': 'linear'}
  refused(write(tmp_path / 'scaled.gguf', tensors, extra=scaled), 'rope.scaling.type', 'linear')
  freqs = tensors | {'rope_freqs.weight': np.ones(3, 'f')}
  refused(write(tmp_path / 'freqs.gguf', freqs), 'rope_freqs')
  bias = tensors | {'blk.0.attn_q.bias': np.ones(24, 'f')}
  refused(write(tmp_path / 'more.gguf', bias), 'blk.0.attn_q.bias')
  less = {n: x for n, x in tensors.items() if 'layers.1.mlp.up' not in n}
  refused(write(tmp_path / 'less.gguf', less), 'blk.1.ffn_up.weight')
  wide = tensors | {'model.norm.weight': np.ones(17, 'f')}
  refused(write(tmp_path / 'wide.gguf', wide), 'output_norm.weight', '[17]', '[16]')
  text = tmp_path / 'text.gguf'
  text.write_text('not a model')
  refused(text, 'not a GGUF file')
  text.write_text('')
  refused(text, 'not a GGUF file')


def test_files_cut_short(llama, tmp_path):
  llama()
  path = write(tmp_path / 'tiny.gguf', llama.tensors)
  data = path.read_bytes()
  for length in (4, 10, 24, 60, 200, 600, 1500, len(data) // 2, len(data) - 40):
    path.write_bytes(data[:length])
    refused(path, 'cut short')


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
