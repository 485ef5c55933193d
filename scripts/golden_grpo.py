"""Writes tests/losses/golden/grpo.npz: losses of answers and their gradients as TRL has them.

python -m scripts.golden_grpo

Needs the extra `peers`. The losses are those of TRL's own trainers, called with given
log-probabilities in place of a model's.
"""

import collections
import pathlib
import types
from typing import Any

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / 'tests' / 'losses' / 'golden' / 'grpo.npz'
ROWS, TOKENS, MAX_TOKENS = 8, 6, 9

# Options of `grpo_loss`, and what TRL calls them.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
  'grpo': ({'aggregation': 'sequence', 'beta': 0.04}, {'loss_type': 'grpo', 'beta': 0.04}),
  'bnpo': ({'aggregation': 'token'}, {'loss_type': 'bnpo'}),
  'dapo': (
    {'aggregation': 'token', 'epsilon_high': 0.28, 'beta': 0.1},
    {'loss_type': 'dapo', 'epsilon_high': 0.28, 'beta': 0.1},
  ),
  'dr_grpo': (
    {'aggregation': 'constant', 'max_tokens': MAX_TOKENS, 'epsilon': 0.1},
    {'loss_type': 'dr_grpo', 'epsilon_low': 0.1, 'epsilon_high': 0.1},
  ),
  'delta': ({'aggregation': 'sequence', 'delta': 1.4}, {'loss_type': 'grpo', 'delta': 1.4}),
}


def given() -> dict[str, np.ndarray]:
  """Log-probabilities with ratios on both sides of all bounds, and answers of several lengths."""
  rng = np.random.default_rng(0)
  old = -rng.exponential(2.0, (ROWS, TOKENS))
  values = {
    'log_probs': old + rng.normal(0, 0.3, old.shape),
    'old': old,
    'reference': old + rng.normal(0, 0.5, old.shape),
    'advantages': rng.normal(0, 1, ROWS),
  }
  lengths = np.array([6, 4, 1, 6, 3, 5, 0, 2])  # one answer has no tokens that count
  mask = np.arange(TOKENS) < lengths[:, None]
  return {name: value.astype(np.float32) for name, value in values.items()} | {'mask': mask}


def grpo(values: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
  """TRL's loss and its gradient by `log_probs`."""
  import trl

  settings = {'beta': 0.0, 'epsilon_low': 0.2, 'epsilon_high': 0.2, 'delta': None} | options
  delta = settings.pop('delta')
  return _called(
    trl.GRPOTrainer,
    values,
    **settings,
    args=types.SimpleNamespace(
      use_bias_correction_kl=False, delta=delta, steps_per_generation=1, use_liger_kernel=False
    ),
  )


def rloo(values: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
  """TRL's loss and its gradient by `log_probs`."""
  import trl

  settings = {'epsilon_low': 0.2, 'epsilon_high': 0.2} | options
  return _called(trl.RLOOTrainer, values, **settings)


def _called(trainer: Any, values: dict[str, np.ndarray], **attributes: Any) -> dict[str, Any]:
  import torch

  tensors = {name: torch.tensor(value) for name, value in values.items()}
  log_probs = tensors['log_probs'].requires_grad_()
  mask = tensors['mask'].int()
  self = types.SimpleNamespace(
    _get_per_token_logps_and_entropies=lambda *_, **__: (
      log_probs,
      torch.zeros_like(log_probs),
      None,
    ),
    aux_loss_enabled=False,
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    importance_sampling_level='token',
    use_vllm=False,
    model=types.SimpleNamespace(training=True),
    current_gradient_accumulation_steps=1,
    max_completion_length=MAX_TOKENS,
    accelerator=types.SimpleNamespace(
      num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
    ),
    _entropy_bonus_enabled=False,
    _metrics={'train': collections.defaultdict(list)},
    **attributes,
  )
  nothing = torch.zeros((len(mask), 1), dtype=torch.int)
  inputs = {
    'prompt_ids': nothing,
    'prompt_mask': nothing + 1,
    'completion_ids': torch.zeros_like(mask),
    'completion_mask': mask,
    'advantages': tensors['advantages'],
    'old_per_token_logps': tensors['old'],
    'old_logps': (tensors['old'] * mask).sum(1),
    'ref_per_token_logps': tensors['reference'],
    'num_items_in_batch': mask.sum(),
  }
  loss = trainer._compute_loss(self, None, inputs)
  loss.backward()
  return {'loss': loss.detach().numpy(), 'gradient': log_probs.grad.numpy()}


def all_cases() -> dict[str, np.ndarray]:
  """Every loss and gradient by the name of its case."""
  values = given()
  found = {name: grpo(values, **theirs) for name, (_, theirs) in CASES.items()}
  found['rloo'] = rloo(values)
  return {f'{name}_{key}': x for name, case in found.items() for key, x in case.items()}


def main() -> None:
  FILE.parent.mkdir(parents=True, exist_ok=True)
  np.savez(FILE, **given(), **all_cases())


if __name__ == '__main__':
  main()
