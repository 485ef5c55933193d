"""One training step of torch: Transformers' Llama, with PEFT's LoRA or every parameter trained."""

import common
import numpy as np


def main() -> None:
  options = common.arguments()
  versions = common.packages('torch', 'transformers', *['peft'] * (options.method == 'lora'))
  import torch
  import transformers

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
    homes = {name: block.self_attn if name in 'qkvo' else block.mlp for name in common.LINEAR}
    return {name: getattr(home, f'{name}_proj') for name, home in homes.items()}

  def put(parameter, value: np.ndarray) -> None:
    parameter.data.copy_(torch.from_numpy(value))

  put(model.get_input_embeddings().weight, common.embedding())
  for layer in range(common.LAYERS):
    for name, value in common.weights(layer).items():
      put(linears(layer)[name].weight, value.T)
  if options.remat:
    model.gradient_checkpointing_enable({'use_reentrant': False})
  if options.method == 'lora':
    import peft

    adapter = peft.LoraConfig(
      r=common.RANK, lora_alpha=common.ALPHA, target_modules='all-linear', task_type='CAUSAL_LM'
    )
    tuned = peft.get_peft_model(model, adapter)  # replaces the linear layers of `model` in place
    for layer in range(common.LAYERS):
      for name, value in common.adapters(layer).items():
        put(linears(layer)[name].lora_A['default'].weight, value.T)
  else:
    tuned = model
  tuned.train()
  optimizer = torch.optim.AdamW(
    [parameter for parameter in tuned.parameters() if parameter.requires_grad],
    lr=common.LEARNING_RATE[options.method],
    betas=common.BETAS,
    eps=common.ADAM_EPSILON,
    weight_decay=common.WEIGHT_DECAY,
    fused=True,
  )

  def one(tokens: np.ndarray) -> float:
    ids = torch.from_numpy(tokens).long()
    optimizer.zero_grad()
    loss = tuned(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    return loss.item()

  common.report(one, options.steps, versions)


if __name__ == '__main__':
  main()
