"""One training step of torch: Transformers' Llama under PEFT, or with every parameter trained."""

import common
import numpy as np


def peft_model(model, method: str, steps: int):
  """The model under PEFT's version of a method of ours."""
  import peft

  own = common.METHODS[method]
  low = {'r': own.get('rank'), 'target_modules': 'all-linear'}
  scaled = {**low, 'lora_alpha': own.get('alpha')}
  virtual = {'num_virtual_tokens': own.get('tokens')}
  configs = {
    'lora': (peft.LoraConfig, scaled),
    'dora': (peft.LoraConfig, {**scaled, 'use_dora': True}),
    'adalora': (
      peft.AdaLoraConfig,
      {
        **{k: v for k, v in scaled.items() if k != 'r'},
        'init_r': own.get('rank'),
        'target_r': 8,
        'total_step': 100 + steps,
      },
    ),
    'ia3': (peft.IA3Config, {}),
    'vera': (peft.VeraConfig, low),
    'loha': (peft.LoHaConfig, {**low, 'alpha': own.get('alpha')}),
    'lokr': (peft.LoKrConfig, {**low, 'alpha': own.get('alpha')}),
    'prompt': (peft.PromptTuningConfig, virtual),
    'prefix': (peft.PrefixTuningConfig, virtual),
  }
  kind, fields = configs[method]
  return peft.get_peft_model(model, kind(task_type='CAUSAL_LM', **fields))


def main() -> None:
  options = common.arguments()
  versions = common.packages('torch', 'transformers', *['peft'] * (options.method != 'full'))
  import torch
  import transformers

  device = 'cuda' if options.device == 'gpu' else 'cpu'
  low = torch.bfloat16 if device == 'cuda' else torch.float32
  if options.threads:
    torch.set_num_threads(options.threads)
  config = transformers.LlamaConfig(
    vocab_size=common.VOCABULARY,
    hidden_size=common.WIDTH,
    intermediate_size=common.HIDDEN,
    num_hidden_layers=common.LAYERS,
    num_attention_heads=common.HEADS,
    num_key_value_heads=common.KV_HEADS,
    head_dim=common.HEAD_WIDTH,
    rms_norm_eps=common.EPSILON,
    rope_theta=common.ROPE_BASE,
    tie_word_embeddings=True,
    use_cache=False,
    attn_implementation='sdpa',
  )
  model = transformers.LlamaForCausalLM(config)

  def linears(layer: int) -> dict:
    block = model.get_decoder().layers[layer]
    homes = {name: block.self_attn if name in 'qkvo' else block.mlp for name in common.linear()}
    return {name: getattr(home, f'{name}_proj') for name, home in homes.items()}

  def put(parameter, value: np.ndarray) -> None:
    parameter.data.copy_(torch.from_numpy(value))

  put(model.get_input_embeddings().weight, common.embedding())
  for layer in range(common.LAYERS):
    for name, value in common.weights(layer).items():
      put(linears(layer)[name].weight, value.T)
  # What trains stays float32 and is computed in bfloat16, as on the other side.
  model.to(device, torch.float32 if options.method == 'full' else low)
  if options.remat:
    model.gradient_checkpointing_enable({'use_reentrant': False})
  tuned = model
  if options.method != 'full':
    # It replaces the linear layers of `model` in place.
    tuned = peft_model(model, options.method, options.steps)
  if options.method in ('lora', 'dora'):
    for layer in range(common.LAYERS):
      for name, value in common.adapters(layer).items():
        put(linears(layer)[name].lora_A['default'].weight, value.T)
  tuned.train()
  optimizer = torch.optim.AdamW(
    [parameter for parameter in tuned.parameters() if parameter.requires_grad],
    lr=common.rate(options.method),
    betas=common.BETAS,
    eps=common.ADAM_EPSILON,
    weight_decay=common.WEIGHT_DECAY,
    fused=True,
  )

  def one(tokens: np.ndarray) -> float:
    ids = torch.from_numpy(tokens).long().to(device)
    optimizer.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
      loss = tuned(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    return loss.item()

  name = torch.cuda.get_device_name() if device == 'cuda' else ''
  peak = torch.cuda.max_memory_allocated if device == 'cuda' else None
  common.report(one, options.steps, versions, options.method, name, peak)


if __name__ == '__main__':
  main()
