"""Tiny models as other tools write them, by their own names, for tests without those tools."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

LLAMA = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 40,
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 6,
  'max_position_embeddings': 32,
  'rms_norm_eps': 1e-6,
  'rope_theta': 5000.0,
  'rope_scaling': None,
  'tie_word_embeddings': True,
  'torch_dtype': 'float32',
}
BERT = {
  'architectures': ['BertModel'],
  'model_type': 'bert',
  'vocab_size': 40,
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'max_position_embeddings': 32,
  'type_vocab_size': 2,
}


def fill(shapes: dict, dtype=np.float32) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {n: (0.3 * rng.standard_normal(s)).astype(dtype) for n, s in shapes.items()}


def llama_tensors(config: dict, dtype=np.float32) -> dict[str, np.ndarray]:
  c = config
  width, hidden, head = c['hidden_size'], c['intermediate_size'], c['head_dim']
  q, kv = c['num_attention_heads'] * head, c['num_key_value_heads'] * head
  shapes = {'model.embed_tokens.weight': (c['vocab_size'], width), 'model.norm.weight': (width,)}
  for i in range(c['num_hidden_layers']):
    shapes |= {
      f'model.layers.{i}.self_attn.q_proj.weight': (q, width),
      f'model.layers.{i}.self_attn.k_proj.weight': (kv, width),
      f'model.layers.{i}.self_attn.v_proj.weight': (kv, width),
      f'model.layers.{i}.self_attn.o_proj.weight': (width, q),
      f'model.layers.{i}.mlp.gate_proj.weight': (hidden, width),
      f'model.layers.{i}.mlp.up_proj.weight': (hidden, width),
      f'model.layers.{i}.mlp.down_proj.weight': (width, hidden),
      f'model.layers.{i}.input_layernorm.weight': (width,),
      f'model.layers.{i}.post_attention_layernorm.weight': (width,),
    }
  if not c['tie_word_embeddings']:
    shapes['lm_head.weight'] = (c['vocab_size'], width)
  return fill(shapes, dtype)


def bert_tensors(config: dict) -> dict[str, np.ndarray]:
  c, e = config, 'embeddings.'
  width, hidden = c['hidden_size'], c['intermediate_size']
  shapes = {
    f'{e}word_embeddings.weight': (c['vocab_size'], width),
    f'{e}position_embeddings.weight': (c['max_position_embeddings'], width),
    f'{e}token_type_embeddings.weight': (c['type_vocab_size'], width),
  }
  dense = {'pooler.dense': (width, width)}
  norms = [f'{e}LayerNorm']
  for i in range(c['num_hidden_layers']):
    p = f'encoder.layer.{i}.'
    dense |= {f'{p}attention.self.{n}': (width, width) for n in ('query', 'key', 'value')}
    dense |= {f'{p}attention.output.dense': (width, width)}
    dense |= {f'{p}intermediate.dense': (hidden, width), f'{p}output.dense': (width, hidden)}
    norms += [f'{p}attention.output.LayerNorm', f'{p}output.LayerNorm']
  for name, shape in dense.items():
    shapes |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
  for name in norms:
    shapes |= {f'{name}.weight': (width,), f'{name}.bias': (width,)}
  return fill(shapes)


def write_model(folder: pathlib.Path, config: dict, tensors: dict) -> pathlib.Path:
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config))
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
  return folder


@pytest.fixture
def llama(tmp_path):
  """`llama(**config)` writes a folder; `llama.tensors` are what it wrote last."""

  def write(dtype=np.float32, **fields):
    config = LLAMA | fields
    write.tensors = llama_tensors(config, dtype)
    return write_model(tmp_path / 'llama', config, write.tensors)

  return write


@pytest.fixture
def bert(tmp_path):
  """`bert(rename, **config)` writes a folder with renamed tensors."""

  def write(rename=lambda name: name, extra=None, **fields):
    config = BERT | fields
    write.tensors = {rename(n): x for n, x in bert_tensors(config).items()} | (extra or {})
    return write_model(tmp_path / 'bert', config, write.tensors)

  return write
