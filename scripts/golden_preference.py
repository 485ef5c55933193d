"""Writes tests/losses/golden/preference.npz: losses on preferences, and gradients, as TRL has them.

python -m scripts.golden_preference

Needs the extra `peers`. TRL's trainers compute the losses, on the smallest language model there is:
the logits of the next token are a row of a table, that of the token before.
"""

import collections
import pathlib
import types
from typing import Any

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / 'tests' / 'losses' / 'golden' / 'preference.npz'
ROWS, LENGTH, VOCABULARY = 4, 9, 7

# name: (batch, objective, its options, options as TRL calls them)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
  'dpo_sigmoid': ('ragged', 'dpo', {}, {'loss_types': ['sigmoid']}),
  'dpo_hinge': ('ragged', 'dpo', {'kind': 'hinge', 'beta': 0.3}, {'loss_types': ['hinge']}),
  'dpo_ipo': ('ragged', 'dpo', {'kind': 'ipo'}, {'loss_types': ['ipo']}),
  'dpo_robust': (
    'ragged', 'dpo', {'kind': 'robust', 'label_smoothing': 0.2}, {'loss_types': ['robust']},
  ),
  'dpo_exo': (
    'ragged', 'dpo', {'kind': 'exo', 'label_smoothing': 1e-3}, {'loss_types': ['exo_pair']},
  ),
  'dpo_nca': ('ragged', 'dpo', {'kind': 'nca'}, {'loss_types': ['nca_pair']}),
  'dpo_bco': ('ragged', 'dpo', {'kind': 'bco'}, {'loss_types': ['bco_pair']}),
  'dpo_sppo': ('ragged', 'dpo', {'kind': 'sppo'}, {'loss_types': ['sppo_hard']}),
  'dpo_apo_zero': ('ragged', 'dpo', {'kind': 'apo_zero'}, {'loss_types': ['apo_zero']}),
  'dpo_apo_down': ('ragged', 'dpo', {'kind': 'apo_down'}, {'loss_types': ['apo_down']}),
  'dpo_normalized': (
    'ragged', 'dpo', {'length_normalized': True, 'beta': 0.5}, {'loss_types': ['sigmoid_norm']},
  ),
  'dpo_sft': (
    'equal', 'dpo', {'sft_weight': 0.3},
    {'loss_types': ['sigmoid', 'sft'], 'loss_weights': [1.0, 0.3]},
  ),
  'cpo': ('ragged', 'cpo', {'sft_weight': 0.0}, {'cpo_alpha': 0.0}),
  'cpo_smoothed': (
    'ragged', 'cpo', {'sft_weight': 0.0, 'label_smoothing': 0.2}, {'cpo_alpha': 0.0},
  ),
  'cpo_sft': ('equal', 'cpo', {'sft_weight': 0.7}, {'cpo_alpha': 0.7}),
  'simpo': (
    'ragged', 'simpo', {'beta': 2.0, 'gamma': 0.8},
    {'cpo_alpha': 0.0, 'loss_type': 'simpo', 'simpo_gamma': 0.8},
  ),
  'orpo': ('equal', 'orpo', {'beta': 0.4}, {}),
  'kto': (
    'ragged', 'kto', {'desirable_weight': 1.5, 'undesirable_weight': 0.7}, {},
  ),
  'kto_apo_zero': ('ragged', 'kto', {'baseline': 0.0}, {'loss_type': 'apo_zero_unpaired'}),
  'reward': ('ragged', 'reward', {'center_rewards_coefficient': 0.1}, {}),
}  # fmt: skip


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
  """Tables of both models, and rows with prompts and padding; those of 'equal' have neither."""
  rng = np.random.default_rng(seed)
  place = np.arange(LENGTH)[None]
  found = {
    'policy': np.float32(rng.normal(size=(VOCABULARY, VOCABULARY))),
    'reference': np.float32(rng.normal(size=(VOCABULARY, VOCABULARY))),
    'label': np.array([True, False, False, True]),
    'margin': np.float32(rng.random(ROWS)),
  }
  for part in ('chosen', 'rejected', 'mismatched'):
    ends = rng.integers(5, LENGTH + 1, (ROWS, 1))
    starts = rng.integers(1, 4, (ROWS, 1))
    found[f'{part}_tokens'] = rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    found[f'{part}_mask'] = place < ends
    found[f'{part}_supervised'] = (place >= starts) & (place < ends)
  return found


def part(found: dict[str, np.ndarray], batch: str, name: str) -> dict[str, np.ndarray]:
  """`tokens`, `mask` and `supervised` of one part of a batch."""
  rows = {field: found[f'{name}_{field}'] for field in ('tokens', 'mask', 'supervised')}
  if batch == 'equal':
    rows['mask'] = np.ones_like(rows['mask'])
    rows['supervised'] = np.ones_like(rows['mask']) & (np.arange(LENGTH) > 0)
  return rows


def trl_loss(name: str, found: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
  """The mean loss of a case, and its gradient by the policy's table."""
  import torch

  batch, objective, own, theirs = CASES[name]
  policy = torch.tensor(found['policy'], requires_grad=True)
  reference = torch.tensor(found['reference'])
  options = {'beta': own.get('beta', 0.1), **theirs}
  options |= {k: v for k, v in own.items() if k.startswith(('label_sm', 'desir', 'undesir'))}
  rows = {k: part(found, batch, k) for k in ('chosen', 'rejected', 'mismatched')}
  loss = {'dpo': _dpo, 'cpo': _cpo, 'simpo': _cpo, 'orpo': _orpo, 'kto': _kto, 'reward': _reward}[
    objective
  ](rows, found, policy, reference, options)
  loss.backward()
  return float(loss.detach()), policy.grad.numpy()


def _model(table: Any) -> Any:
  """A model that answers like TRL's: logits, and log-probabilities where labels are given."""
  import torch

  class Model(torch.nn.Module):
    is_gradient_checkpointing = False

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None, **_: Any):
      logits = table[input_ids.long()]
      out = types.SimpleNamespace(logits=logits)
      if labels is not None:
        shifted = labels[:, 1:].long()
        scores = torch.log_softmax(logits[:, :-1], -1)
        picked = scores.gather(-1, shifted.clamp(min=0)[..., None])[..., 0]
        out.log_probs = picked * (shifted >= 0)
        out.entropy = out.mean_logits = out.is_top1 = torch.zeros_like(shifted, dtype=bool)
      return out

  return Model()


def _trainer(kind: Any, model: Any, **attributes: Any) -> Any:
  """A trainer without data, files or processes, which knows how to compute its loss."""
  trainer = kind.__new__(kind)
  accelerator = types.SimpleNamespace(
    device='cpu', gather=lambda x: x, gather_for_metrics=lambda x: x
  )
  defaults = {
    'accelerator': accelerator,
    'model': model,
    'args': types.SimpleNamespace(gradient_checkpointing_kwargs=None),
    'aux_loss_enabled': False,
    'label_smoothing': 0.0,
    '_metrics': collections.defaultdict(lambda: collections.defaultdict(list)),
    '_total_train_tokens': 0,
    '_tp_size': 1,
  }
  trainer.__dict__.update(defaults | attributes)
  return trainer


def _concatenated(rows: dict[str, Any]) -> dict[str, Any]:
  import torch

  def both(field: str) -> Any:
    return torch.tensor(np.concatenate([rows['chosen'][field], rows['rejected'][field]]))

  return {
    'input_ids': both('tokens').long(),
    'attention_mask': both('mask').long(),
    'completion_mask': both('supervised').long(),
  }


def _dpo(rows: Any, found: Any, policy: Any, reference: Any, options: Any) -> Any:
  from trl import DPOTrainer

  model = _model(policy)
  trainer = _trainer(
    DPOTrainer, model, ref_model=_model(reference), ld_alpha=None, precompute_ref_logps=False,
    f_divergence_type='reverse_kl', use_weighting=False,
    **{'loss_weights': [1.0], **options},
  )  # fmt: skip
  return trainer._compute_loss(model, _concatenated(rows), return_outputs=False)


def _pair_batch(rows: Any) -> dict[str, Any]:
  import torch

  batch = {}
  for name in ('chosen', 'rejected'):
    tokens = torch.tensor(rows[name]['tokens']).long()
    batch[f'{name}_input_ids'] = tokens
    batch[f'{name}_attention_mask'] = torch.tensor(rows[name]['mask']).long()
    batch[f'{name}_labels'] = tokens.masked_fill(~torch.tensor(rows[name]['supervised']), -100)
  return batch


def _cpo(rows: Any, found: Any, policy: Any, reference: Any, options: Any) -> Any:
  from trl.experimental.cpo import CPOTrainer

  model = _model(policy)
  trainer = _trainer(
    CPOTrainer, model, is_encoder_decoder=False, pad_token_id=0, alpha=0.0,
    **{'loss_type': 'sigmoid', **options},
  )  # fmt: skip
  return trainer.get_batch_loss_metrics(model, _pair_batch(rows))[0]


def _orpo(rows: Any, found: Any, policy: Any, reference: Any, options: Any) -> Any:
  from trl.experimental.orpo import ORPOTrainer

  model = _model(policy)
  trainer = _trainer(ORPOTrainer, model, is_encoder_decoder=False, padding_value=0, **options)
  return trainer.get_batch_loss_metrics(model, _pair_batch(rows))[0]


def _kto(rows: Any, found: Any, policy: Any, reference: Any, options: Any) -> Any:
  import torch
  from trl import KTOTrainer

  model = _model(policy)
  trainer = _trainer(
    KTOTrainer, model, ref_model=_model(reference), precompute_ref_logps=False,
    **{'loss_type': 'kto', 'desirable_weight': 1.0, 'undesirable_weight': 1.0, **options},
  )  # fmt: skip
  trainer.calculate_KL = trainer.loss_type == 'kto'
  batch = {'label': torch.tensor(found['label'])}
  for prefix, name in (('', 'chosen'), ('KL_', 'mismatched')):
    own = rows[name]
    batch[f'{prefix}input_ids'] = torch.tensor(own['tokens']).long()
    batch[f'{prefix}attention_mask'] = torch.tensor(own['mask']).long()
    batch[f'{prefix}completion_mask'] = torch.tensor(own['supervised']).long()
  return trainer._compute_loss(model, batch, return_outputs=False)


def _reward(rows: Any, found: Any, policy: Any, reference: Any, options: Any) -> Any:
  import torch
  from trl import RewardTrainer

  class Model(torch.nn.Module):  # the first column of the table, summed over real tokens
    def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
      return types.SimpleNamespace(
        logits=(policy[:, 0][input_ids] * attention_mask).sum(1, keepdim=True)
      )

  model = Model()
  args = types.SimpleNamespace(center_rewards_coefficient=0.1)
  trainer = _trainer(RewardTrainer, model, args=args)
  batch = _concatenated(rows)
  del batch['completion_mask']
  return trainer.compute_loss(model, {**batch, 'margin': torch.tensor(found['margin'])})


def main() -> None:
  found = inputs()
  results = dict(found)
  for name in CASES:
    loss, gradient = trl_loss(name, found)
    results |= {f'{name}_loss': np.float32(loss), f'{name}_gradient': gradient}
  FILE.parent.mkdir(exist_ok=True)
  np.savez_compressed(FILE, **results)
  print(f'{FILE}: {len(CASES)} losses')


if __name__ == '__main__':
  main()
