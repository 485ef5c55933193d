"""Writes tests/losses/golden/supervised.npz: losses on labels, with gradients, of the peers.

python -m scripts.golden_supervised

Needs the extra `peers`. TRL's SFT trainer, the losses of transformers and those of torch, on given
logits with padding.
"""

import pathlib
import types
from typing import Any

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / 'tests' / 'losses' / 'golden' / 'supervised.npz'
B, T, C = 4, 7, 5
WEIGHTS = [0.5, 1.0, 2.0, 1.5, 0.7]

# name: (objective, its options); the logits are `[B, T, C]` of tokens, `[B, C]` or `[B, 1]` of rows
CASES: dict[str, tuple[str, dict[str, Any]]] = {
  'sft': ('causal_lm', {}),
  'sft_smoothed': ('causal_lm', {'label_smoothing': 0.1}),
  'dft': ('causal_lm', {'dft': True}),
  'classification': ('classification', {}),
  'classification_weighted': (
    'classification', {'label_smoothing': 0.2, 'class_weights': WEIGHTS},
  ),
  'multi_label': ('multi_label', {}),
  'token_classification': ('token_classification', {}),
  'mean_squared_error': ('mean_squared_error', {}),
  'huber': ('huber', {'delta': 0.8}),
}  # fmt: skip


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
  """Logits, tokens with padding and prompts, and labels of every kind."""
  rng = np.random.default_rng(seed)
  place, ends = np.arange(T)[None], np.array([[7], [5], [3], [6]])
  mask = place < ends
  return {
    'logits': np.float32(3 * rng.normal(size=(B, T, C))),
    'tokens': rng.integers(0, C, (B, T)).astype(np.int32),
    'mask': mask,
    'supervised': mask & (place >= rng.integers(1, 3, (B, 1))),
    'classes': rng.integers(0, C, B).astype(np.int32),
    'several': np.float32(rng.random((B, C)) < 0.4),
    'tags': np.where(mask & (rng.random((B, T)) < 0.7), rng.integers(0, C, (B, T)), -100),
    'numbers': np.float32(rng.normal(size=B)),
  }


def peer_loss(name: str, found: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
  """The mean loss of a case, and its gradient by the logits `[B, T, C]`."""
  import torch
  from transformers.loss import loss_utils

  objective, options = CASES[name]
  logits = torch.tensor(found['logits'], requires_grad=True)
  rows = logits[:, 0]
  config = types.SimpleNamespace(num_labels=C, problem_type=None)
  if objective == 'causal_lm':
    loss = _sft(found, logits, options)
  elif options.get('class_weights'):
    own = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.2)
    loss = own(rows, torch.tensor(found['classes']).long())
  elif objective in ('classification', 'multi_label'):
    several = objective == 'multi_label'
    config.problem_type = f'{"multi" if several else "single"}_label_classification'
    labels = torch.tensor(found['several'] if several else np.int64(found['classes']))
    loss = loss_utils.ForSequenceClassificationLoss(labels, rows, config)
  elif objective == 'token_classification':
    loss = loss_utils.ForTokenClassification(logits, torch.tensor(found['tags']), config)
  else:
    own = torch.nn.MSELoss() if objective == 'mean_squared_error' else torch.nn.HuberLoss(**options)
    loss = own(rows[:, 0], torch.tensor(found['numbers']))
  loss.backward()
  return float(loss.detach()), logits.grad.numpy()


def _sft(found: dict[str, np.ndarray], logits: Any, options: dict[str, Any]) -> Any:
  import torch
  from transformers.trainer_pt_utils import LabelSmoother
  from trl import SFTTrainer

  from scripts.golden_preference import _trainer

  class Model(torch.nn.Module):
    def forward(self, labels: Any = None, **_: Any) -> Any:
      out = {'logits': logits}
      if labels is None:
        return types.SimpleNamespace(**out) if not options.get('label_smoothing') else out
      shifted = labels[:, 1:]
      known = shifted >= 0
      scores = torch.log_softmax(logits[:, :-1], -1)
      picked = scores.gather(-1, shifted.clamp(min=0)[..., None])[..., 0]
      zeros = torch.zeros(shifted.shape)
      return types.SimpleNamespace(
        log_probs=picked * known, label_mask=known, entropy=zeros, is_top1=zeros
      )

  model = Model()
  smoothing = options.get('label_smoothing')
  trainer = _trainer(
    SFTTrainer, model, compute_loss_func=None,
    label_smoother=LabelSmoother(epsilon=smoothing) if smoothing else None,
    args=types.SimpleNamespace(
      loss_type='dft' if options.get('dft') else 'nll', average_tokens_across_devices=False
    ),
  )  # fmt: skip
  trainer.accelerator.parallelism_config = None
  labels = torch.tensor(np.where(found['supervised'], found['tokens'], -100)).long()
  mask = torch.tensor(found['mask']).long()
  return trainer.compute_loss(model, {'labels': labels, 'attention_mask': mask})


def main() -> None:
  found = inputs()
  values = dict(found)
  for name in CASES:
    values[f'{name}_loss'], values[f'{name}_gradient'] = peer_loss(name, found)
  FILE.parent.mkdir(exist_ok=True)
  np.savez_compressed(FILE, **values)


if __name__ == '__main__':
  main()
