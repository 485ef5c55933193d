"""One training step of Tunix: its Llama 3 model and PeftTrainer's own compiled step."""

import common
import numpy as np


def main() -> None:
  options = common.arguments()
  versions = common.packages('google-tunix', 'jax', 'flax', 'qwix', 'optax')
  import jax.numpy as jnp
  import qwix
  from flax import nnx
  from tunix.models.llama3 import model as llama
  from tunix.sft import peft_trainer, utils

  config = llama.ModelConfig(
    num_layers=common.LAYERS,
    vocab_size=common.VOCABULARY,
    embed_dim=common.WIDTH,
    hidden_dim=common.HIDDEN,
    num_heads=common.HEADS,
    head_dim=common.HEAD_WIDTH,
    num_kv_heads=common.KV_HEADS,
    rope_theta=int(common.ROPE_BASE),
    norm_eps=common.EPSILON,
    weight_tying=True,
    remat_config=llama.RematConfig.BLOCK if options.remat else llama.RematConfig.NONE,
  )
  model = llama.Llama3(config, rngs=nnx.Rngs(0))
  if options.method == 'lora':
    provider = qwix.LoraProvider(
      module_path='.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)',
      rank=common.RANK,
      alpha=common.ALPHA,
    )
    model = qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(0), **model.get_model_input())

  def put(parameter, value: np.ndarray) -> None:
    parameter.value = jnp.array(value.reshape(parameter.value.shape))

  put(model.embedder.input_embedding, common.embedding())
  for layer, block in enumerate(model.layers):
    adapters = common.adapters(layer)
    for name, value in common.weights(layer).items():
      home, field = (block.attn, 'w') if name in 'qkvo' else (block.mlp, 'kernel')
      linear = getattr(home, f'{name}_proj')
      put(getattr(linear, field), value)
      if options.method == 'lora':
        put(getattr(linear, f'{field}_lora_a'), adapters[name])

  optimizer = common.adamw(options.method)
  trainer = peft_trainer.PeftTrainer(
    model, optimizer, peft_trainer.TrainingConfig(eval_every_n_steps=10**6)
  )
  # What PeftTrainer.train calls for each batch, without its logging.
  step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
  shape = (common.BATCH, common.LENGTH)
  rest = {
    'input_mask': jnp.ones(shape, bool),
    'positions': jnp.broadcast_to(jnp.arange(common.LENGTH)[None], shape),
    'attention_mask': utils.make_causal_attn_mask(jnp.ones(shape, bool)),
  }

  def one(tokens: np.ndarray) -> float:
    loss, _, _ = step({'input_tokens': jnp.asarray(tokens), **rest})
    return float(loss)

  common.report(one, options.steps, versions, options.method)


if __name__ == '__main__':
  main()
