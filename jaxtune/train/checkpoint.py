"""Checkpoints through Orbax: the state, the data cursor, and a digest that proves them whole.

The newest two are kept to go on from, and the one with the best score to export. This file is the
only one that knows Orbax.
"""

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxtune import tree
from jaxtune.train.state import State
from jaxtune.typing import InputError

DIGESTS = 'digests.json'
_SLACK = 1 << 20  # bytes, for the files that Orbax adds


class Restored(NamedTuple):
  """A state read back, the data cursor beside it, and the damaged steps passed over on the way."""

  state: State
  cursor: dict[str, Any]
  damaged: tuple[int, ...]


def open_checkpoints(folder: str | os.PathLike[str]) -> ocp.CheckpointManager:
  """The manager of a folder, made if needed."""
  keep = policies.AnyPreservationPolicy(
    [
      policies.LatestN(2),
      policies.BestN(
        get_metric_fn=lambda metrics: metrics['score'],
        n=1,
        keep_checkpoints_without_metrics=False,
      ),
    ]
  )
  options = ocp.CheckpointManagerOptions(
    preservation_policy=keep,
    best_fn=lambda metrics: metrics['score'],
    enable_async_checkpointing=False,
    cleanup_tmp_directories=True,
  )
  return ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=options)


def save(
  manager: ocp.CheckpointManager, state: State, cursor: dict[str, Any], score: float | None
) -> None:
  """Writes the state under its own step number, unless it is there already.

  Args:
    manager: from `open_checkpoints`.
    state: all leaves are copied to the host before this returns.
    cursor: the place in the data, as JSON can hold it.
    score: of this step's evaluation, greater is better; None if it was not evaluated.

  Raises:
    InputError: it cannot be written; the checkpoints before it are untouched.
  """
  step = int(state.step)
  if step in manager.all_steps():
    return
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(dict(cursor))
  )
  folder = pathlib.Path(manager.directory) / str(step)
  # Asked first, because Orbax's threads print a page of tracebacks when the disk fills up.
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SLACK
  free = shutil.disk_usage(manager.directory).free
  if free < needed:
    raise InputError(
      f'{folder}: the checkpoint needs {needed / 2**20:.1f} MiB, and {free / 2**20:.1f} MiB are '
      'free; make room, or choose another folder'
    )
  try:
    manager.save(step, args=items, metrics=None if score is None else {'score': score})
    (folder / DIGESTS).write_text(json.dumps(_digests(folder)))
  except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
    raise InputError(
      f'{folder}: the checkpoint cannot be written ({str(error).splitlines()[0]}); '
      'make room, or choose another folder'
    ) from error


def restore(
  manager: ocp.CheckpointManager, like: State, step: int | None = None
) -> Restored | None:
  """The newest whole checkpoint (or that of `step`), or None where there is none.

  Args:
    manager: from `open_checkpoints`.
    like: a state, or its shapes, types and shardings, that the checkpoint must have.
    step: a step to read in place of the newest.

  Raises:
    InputError: checkpoints are there, and every one is damaged, or the newest whole one is that of
      another model, method or update rule.
  """
  steps = sorted(manager.all_steps(), reverse=True) if step is None else [step]
  damaged = []
  directory = pathlib.Path(manager.directory)
  for number in steps:
    folder = directory / str(number)
    if not _whole(folder):
      damaged.append(number)
      continue
    _check(folder, like)
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore())
    read = manager.restore(number, args=items)
    for bad in damaged:
      manager.delete(bad)
    return Restored(State(*read['state']), read['data'], tuple(damaged))
  if step is None and not any((directory / str(bad) / DIGESTS).exists() for bad in damaged):
    for bad in damaged:  # saving it never ended, and nothing was saved before it
      manager.delete(bad)
    return None
  if damaged:
    raise InputError(
      f'{manager.directory}: the checkpoints of steps {", ".join(map(str, damaged))} are all '
      'damaged (a file is missing, cut short or changed); remove the folder to start anew'
    )
  return None


def best(manager: ocp.CheckpointManager) -> tuple[int, float] | None:
  """The step with the best score and that score, if any step has one."""
  step = manager.best_step()
  if step is None:
    return None
  return step, float(manager.metrics(step)['score'])


def _check(folder: pathlib.Path, like: State) -> None:
  """Refuses a checkpoint of another tree, which Orbax reports by the page, or casts and cuts."""

  def stored(x: Any) -> Any:
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x

  held = ocp.StandardCheckpointHandler().metadata(folder / 'state').tree
  found = tree.difference(jax.eval_shape(lambda x: jax.tree.map(stored, x), like), held)
  if found:
    raise InputError(
      f'{folder}: the checkpoint comes from another model, method or update rule: {found}; '
      'use those that it was made with, or another folder'
    )


def _digests(folder: pathlib.Path) -> dict[str, str]:
  digests = {}
  for path in sorted(p for p in folder.rglob('*') if p.is_file() and p.name != DIGESTS):
    with path.open('rb') as file:
      name = path.relative_to(folder).as_posix()
      digests[name] = hashlib.file_digest(file, 'blake2b').hexdigest()
  return digests


def _whole(folder: pathlib.Path) -> bool:
  try:
    wanted = json.loads((folder / DIGESTS).read_text())
  except (OSError, ValueError):
    return False
  return wanted == _digests(folder)
