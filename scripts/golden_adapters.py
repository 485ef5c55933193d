"""Writes tests/interop/golden/adapters: an adapter of each kind as PEFT saves it, and its outputs.

python -m scripts.golden_adapters [name ...]

Needs the extra `peers`. The adapters are on two tiny random models, in the folders `llama` and
`bert`; without names all are written. Runs with one version of torch write the same numbers.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.interop.decoders import rope
from tests.interop.families import batch, outputs, random_model

FOLDER = pathlib.Path(__file__).parents[1] / 'tests' / 'interop' / 'golden' / 'adapters'

BASES: dict[str, tuple[str, dict[str, Any]]] = {
  'llama': (
    'LlamaForCausalLM',
    {
      'vocab_size': 32,
      'hidden_size': 16,
      'intermediate_size': 24,
      'num_hidden_layers': 2,
      'num_attention_heads': 4,
      'num_key_value_heads': 2,
      'max_position_embeddings': 32,
      'rms_norm_eps': 3e-3,
      'tie_word_embeddings': True,
      'pad_token_id': 0,
      'bos_token_id': 1,
      'eos_token_id': 2,
    }
    | rope(),
  ),
  'bert': (
    'BertForSequenceClassification',
    {
      'vocab_size': 32,
      'hidden_size': 16,
      'intermediate_size': 24,
      'num_hidden_layers': 2,
      'num_attention_heads': 4,
      'max_position_embeddings': 16,
      'layer_norm_eps': 3e-3,
      'pad_token_id': 0,
      'num_labels': 3,
    },
  ),
}


class Adapter(NamedTuple):
  """An adapter of PEFT.

  Attributes:
    base: of `BASES`.
    config: name of PEFT's class.
    fields: of it, without `task_type`; a function makes them of the model where they depend on it.
    noise: standard deviation of what is added to every trained parameter.
    prepare: `(model) -> None` on PEFT's model before the noise.
  """

  base: str
  config: str
  fields: dict[str, Any] | Callable[[Any], dict[str, Any]]
  noise: float = 0.2
  prepare: Callable[[Any], None] | None = None


def settle(adapted: Any) -> None:
  """Takes triplets from an AdaLoRA, of which PEFT saves a module without any too."""
  kept = {
    f'model.layers.{layer}.{module}.lora_E.default': [layer == 0, False, module == 'mlp.up_proj']
    for layer in range(2)
    for module in ('self_attn.q_proj', 'mlp.up_proj')
  }
  adapted.peft_config['default'].rank_pattern = kept
  adapted.base_model.resize_modules_by_rank_pattern(kept, 'default')


CONFIGS: dict[str, Adapter] = {
  'lora': Adapter('bert', 'LoraConfig', {'r': 2, 'target_modules': ['query', 'value']}),
  'lora_patterns': Adapter(
    'llama',
    'LoraConfig',
    {
      'r': 2,
      'target_modules': r'.*\.(q_proj|o_proj|gate_proj)',
      'rank_pattern': {'layers.1.self_attn.q_proj': 1, r'layers\.0\.mlp\.gate_proj': 3},
      'alpha_pattern': {'o_proj': 5, 'layers.1.self_attn.q_proj': 3},
    },
  ),
  'lora_all_linear': Adapter('llama', 'LoraConfig', {'r': 2, 'target_modules': 'all-linear'}),
  'rslora': Adapter(
    'llama',
    'LoraConfig',
    {'r': 3, 'lora_alpha': 2, 'target_modules': ['q_proj', 'up_proj'], 'use_rslora': True},
  ),
  'dora': Adapter(
    'bert', 'LoraConfig', {'r': 2, 'target_modules': ['query', 'dense'], 'use_dora': True}
  ),
  'embedding': Adapter(
    'bert', 'LoraConfig', {'r': 2, 'target_modules': ['word_embeddings', 'position_embeddings']}
  ),
  'embedding_alone': Adapter('llama', 'LoraConfig', {'r': 2, 'target_modules': ['embed_tokens']}),
  'embedding_tied': Adapter(
    'llama',
    'LoraConfig',
    {'r': 2, 'target_modules': ['embed_tokens', 'v_proj'], 'ensure_weight_tying': True},
  ),
  'bias_all': Adapter(
    'bert', 'LoraConfig', {'r': 1, 'target_modules': ['value', 'query'], 'bias': 'all'}
  ),
  'bias_lora_only': Adapter(
    'bert', 'LoraConfig', {'r': 1, 'target_modules': ['value', 'query'], 'bias': 'lora_only'}
  ),
  'loha': Adapter(
    'llama',
    'LoHaConfig',
    {
      'r': 2,
      'alpha': 3,
      'target_modules': ['q_proj', 'down_proj'],
      'rank_pattern': {'layers.1.self_attn.q_proj': 3},
    },
  ),
  'lokr': Adapter(
    'llama',
    'LoKrConfig',
    {
      'r': 1,
      'target_modules': ['q_proj', 'v_proj', 'up_proj'],
      'rank_pattern': {r'layers\.1\..*v_proj': 4},
      'alpha_pattern': {'up_proj': 3},
    },
    noise=0.5,
  ),
  'lokr_both': Adapter(
    'bert',
    'LoKrConfig',
    {'r': 1, 'alpha': 2, 'target_modules': r'.*(query|dense)', 'decompose_both': True},
    noise=0.5,
  ),
  'adalora': Adapter(
    'bert', 'AdaLoraConfig', {'init_r': 3, 'total_step': 9, 'target_modules': ['query', 'value']}
  ),
  'adalora_settled': Adapter(
    'llama',
    'AdaLoraConfig',
    {'init_r': 3, 'total_step': 9, 'lora_alpha': 4, 'target_modules': ['q_proj', 'up_proj']},
    prepare=settle,
  ),
  'ia3': Adapter('bert', 'IA3Config', {}),
  'trainable_tokens': Adapter('llama', 'TrainableTokensConfig', {'token_indices': [9, 20, 4]}),
  'lora_tokens': Adapter(
    'bert',
    'LoraConfig',
    {'r': 2, 'target_modules': ['query'], 'trainable_token_indices': [9, 20, 4]},
  ),
  'ln_tuning': Adapter('bert', 'LNTuningConfig', {'target_modules': ['LayerNorm']}),
  'prompt': Adapter('bert', 'PromptTuningConfig', {'num_virtual_tokens': 3}),
  'p_tuning': Adapter(
    'bert', 'PromptEncoderConfig', {'num_virtual_tokens': 3, 'encoder_hidden_size': 4}
  ),
  'prefix': Adapter('llama', 'PrefixTuningConfig', {'num_virtual_tokens': 3}),
  'vera': Adapter('llama', 'VeraConfig', {'r': 6, 'target_modules': 'all-linear'}),
}


def main(names: list[str]) -> None:
  for base, (kind, fields) in BASES.items():
    if names and (FOLDER / base).exists():
      continue
    model = random_model(kind, **fields)
    fresh(FOLDER / base)
    model.save_pretrained(FOLDER / base)
    (FOLDER / base / 'generation_config.json').unlink(missing_ok=True)
  for name in names or CONFIGS:
    write(name, CONFIGS[name])


def fresh(folder: pathlib.Path) -> None:
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)


def write(name: str, row: Adapter) -> None:
  """The adapter's folder, with `expected.npz` of what went in and came out of base and adapted."""
  import peft
  import torch

  data = batch(32, 8, 'right')
  given = {'input_ids': data.tokens, 'attention_mask': data.mask.astype(np.int64)}
  kind, fields = BASES[row.base]
  model = random_model(kind, **fields)
  before = outputs(model, **given)
  torch.manual_seed(0)
  task = 'SEQ_CLS' if row.base == 'bert' else 'CAUSAL_LM'
  chosen = row.fields(model) if callable(row.fields) else row.fields
  config = getattr(peft, row.config)(task_type=task, **chosen)
  adapted = peft.get_peft_model(model, config).eval()
  if row.prepare is not None:
    row.prepare(adapted)
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for parameter in adapted.parameters():
      if parameter.requires_grad:
        parameter.add_(row.noise * torch.randn(parameter.shape, generator=generator))
  after = outputs(adapted, **given)
  if after.ndim == 3:  # without those of virtual tokens
    after = after[:, -data.tokens.shape[1] :]
  real = data.mask if after.ndim == 3 else slice(None)
  moved = np.abs(after - before)[real].max()
  assert moved >= 0.1, f'{name} moves the outputs by {moved:.3f} only: give it more noise'

  folder = FOLDER / name
  fresh(folder)
  with tempfile.TemporaryDirectory() as saved:
    adapted.save_pretrained(saved)
    shutil.copy(f'{saved}/adapter_model.safetensors', folder)
    written = json.loads(pathlib.Path(saved, 'adapter_config.json').read_text())
  written['base_model_name_or_path'] = row.base
  (folder / 'adapter_config.json').write_text(json.dumps(written, indent=2, sort_keys=True) + '\n')
  np.savez_compressed(
    folder / 'expected.npz', tokens=data.tokens, mask=data.mask, base=before, outputs=after
  )
  size = sum(file.stat().st_size for file in folder.iterdir())
  assert size < 60_000, f'{name} takes {size} bytes'
  print(f'{name}: moves by {moved:.2f}, {size} bytes')


if __name__ == '__main__':
  os.environ['HF_HUB_OFFLINE'] = '1'  # PEFT asks for the base's configuration there
  main(sys.argv[1:])
