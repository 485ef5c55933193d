"""Going back to a checkpoint when the steps after it lead nowhere."""

from typing import Any

from jaxtune.train import checkpoint
from jaxtune.train.checkpoint import Checkpoints, Restored
from jaxtune.typing import InputError

AGAIN = 3  # times that a run goes back to one checkpoint


def go_back(checkpoints: Checkpoints, like: Any, last: int, bad: int, times: int) -> Restored:
  """The newest checkpoint from before the skipped steps; later ones are deleted.

  Only checkpoints that a run without interruptions has too are gone back to, so a stop in between
  changes nothing.

  Args:
    checkpoints: of the run.
    like: see `checkpoint.restore`.
    last: of the skipped steps.
    bad: how many they are.
    times: that the run went back to this checkpoint before.

  Raises:
    InputError: there is none, or the run went back to it too often.
  """
  good = [step for step in checkpoint.regular(checkpoints) if step <= last - bad]
  found = checkpoint.restore(checkpoints, like, good) if times < AGAIN else None
  if found is None:
    reason = f'after going back {AGAIN} times' if good else 'and no checkpoint is from before them'
    raise InputError(
      f'{bad} steps in a row were skipped up to step {last}, {reason}; lower optim.lr, lengthen '
      'optim.warmup, set train.save_every, or look at the data'
    )
  for step in checkpoints.steps:
    if step > int(found.state.step):
      checkpoint.delete(checkpoints, step)
  return found
