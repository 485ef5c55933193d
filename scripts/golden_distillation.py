"""Writes tests/losses/golden/distillation.npz: divergences as torch and TRL's GKD have them.

python -m scripts.golden_distillation

Needs the extra `peers`. Sums over the tokens that are learned, and gradients by the student's
logits.
"""

import pathlib
from typing import Any

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / 'tests' / 'losses' / 'golden' / 'distillation.npz'
B, T, V = 2, 5, 7

# name: (kind, beta, temperature); TRL calls the forward and the reverse one beta 0 and 1.
CASES = {
  'forward': ('forward', 0.5, 1.0),
  'forward_soft': ('forward', 0.5, 2.0),
  'reverse': ('reverse', 0.5, 1.0),
  'js': ('js', 0.5, 1.0),
  'js_near': ('js', 0.1, 3.0),
}


def inputs() -> dict[str, np.ndarray]:
  """Logits of both, labels of classes, and which tokens are learned."""
  rng = np.random.default_rng(0)
  return {
    'student': np.float32(rng.normal(0, 2, (B, T, V))),
    'teacher': np.float32(rng.normal(0, 2, (B, T, V))),
    'label': rng.integers(0, V, (B, T)).astype(np.int32),
    'learned': np.arange(T)[None] < np.array([[5], [3]]),
  }


def peer_losses(name: str, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """`trl`, `trl_gradient`, and where torch has the divergence `torch`."""
  import torch
  from torch.nn import functional
  from trl.experimental.gkd import GKDTrainer

  kind, beta, temperature = CASES[name]
  student, teacher = (torch.tensor(found[k], requires_grad=k == 'student') for k in
                      ('student', 'teacher'))  # fmt: skip
  labels = torch.tensor(np.where(found['learned'], found['label'], -100))
  loss = GKDTrainer.generalized_jsd_loss(
    student,
    teacher,
    labels,
    {'forward': 0.0, 'reverse': 1.0}.get(kind, beta),
    temperature,
    reduction='sum',
  )
  loss.backward()
  said: dict[str, Any] = {'trl': loss.detach().numpy(), 'trl_gradient': student.grad.numpy()}
  if kind != 'js':
    q, p = (functional.log_softmax(x.detach() / temperature, -1) for x in (student, teacher))
    q, p = (q, p) if kind == 'forward' else (p, q)
    kl = torch.nn.KLDivLoss(reduction='none', log_target=True)(q, p).sum(-1)
    said['torch'] = kl[torch.tensor(found['learned'])].sum().numpy()
  return said


def main() -> None:
  found = inputs()
  saved = dict(found)
  for name in CASES:
    saved |= {f'{name}/{key}': value for key, value in peer_losses(name, found).items()}
  FILE.parent.mkdir(exist_ok=True)
  np.savez_compressed(FILE, **saved)


if __name__ == '__main__':
  main()
