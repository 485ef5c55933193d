"""What the peers' tests of adapters share: one batch, what each side makes of it, and how near."""

import jax
import numpy as np

from jaxtune import interop

MASK = np.arange(12)[None] < np.array([[12], [9], [4]])
# Transformers' decoders find the last token by the padding's id, ours by the mask: pad with it.
TOKENS = np.where(MASK, np.random.default_rng(0).integers(1, 90, MASK.shape), 0).astype(np.int32)


def tiny_llama(folder, layers=4):
  """A random Llama in a folder, which is returned."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=layers,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    tie_word_embeddings=True,
    pad_token_id=0,
  )
  transformers.LlamaForCausalLM(config).save_pretrained(folder)
  return folder


def theirs(model):
  import torch

  with torch.no_grad():
    out = model.eval()(torch.tensor(TOKENS).long(), attention_mask=torch.tensor(MASK).long())
  return (out.logits if hasattr(out, 'logits') else out.last_hidden_state).float().numpy()


def ours(model, params):
  return np.asarray(jax.jit(model.apply)(params, TOKENS, MASK))


def agree(base, tuned, other, name, mask=MASK):
  """Contract: to 2% of what the adapter moves them, which must be at least 0.1."""
  rows = mask if base.ndim == 3 else slice(None)
  moved = np.abs(tuned - base)[rows].max()
  error = np.abs(other - tuned)[rows].max()
  print(f'{name}: the adapter moves by {moved:.3f}, the tools differ by {error:.2e}')
  assert moved >= 0.1
  assert error <= 0.02 * moved


def load(folder, model, params):
  """The model, under the classifier that the adapter brings, and the parameters with it."""
  model, params = interop.adapter_head(folder, model, params)
  return model, interop.load_peft(folder, model, params)
