"""Checkpoints through Orbax: the state, the data cursor, and digests that prove them whole.

They are written while training goes on. This file is the only one that knows Orbax.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxtune import shard, tree
from jaxtune.train.state import State
from jaxtune.typing import InputError

DIGESTS = 'digests.json'
_LATER = (DIGESTS, '_CHECKPOINT_METADATA')  # written when the other files have been read
_SLACK = 1 << 20  # bytes, for the files that Orbax adds


class Note(NamedTuple):
  """What a checkpoint says of itself.

  Attributes:
    score: of its evaluation, greater is better; None if it was not evaluated.
    regular: an undisturbed run has it too: it was not only written because the run was stopped.
    made_of: what the run is made of besides what a checkpoint holds, name -> digest.
    rollbacks: how often the run went back to a checkpoint, in all and since the last regular one.
  """

  score: float | None = None
  regular: bool = True
  made_of: Mapping[str, str] = {}
  rollbacks: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """The checkpoints of one run, made by `open_checkpoints`.

  Attributes:
    manager: Orbax's.
    notes: of each step that is there, or being written.
    made_of: see `Note`.
  """

  manager: ocp.CheckpointManager
  notes: dict[int, Note]
  made_of: Mapping[str, str]

  @property
  def folder(self) -> pathlib.Path:
    return pathlib.Path(self.manager.directory)

  @property
  def steps(self) -> list[int]:
    """In order, with the one that is being written."""
    return sorted(self.manager.all_steps())


class Restored(NamedTuple):
  """A state read back, what was saved beside it, and the damaged steps passed over on the way."""

  state: State
  cursor: dict[str, Any]
  note: Note
  damaged: tuple[int, ...]


def open_checkpoints(
  folder: str | os.PathLike[str], *, keep: int = 2, made_of: Mapping[str, str] | None = None
) -> Checkpoints:
  """The checkpoints in a folder, which is made if needed.

  Args:
    folder: of one run.
    keep: how many to keep to go on from, at least 1; the best one stays as well.
    made_of: name -> digest of what must not change under a run, of the frozen base above all, see
      `train.digest`.
  """
  root = pathlib.Path(folder).absolute()
  notes = {int(path.name): _read_note(path) for path in root.glob('*') if path.name.isdigit()}

  def prove() -> None:
    # Under its temporary name still, so that a checkpoint and its proof appear together.
    for path in root.glob(f'*{ocp.utils.TMP_DIR_SUFFIX}*'):
      (path / DIGESTS).write_text(json.dumps(_digests(path)))

  options = ocp.CheckpointManagerOptions(
    preservation_policy=_Kept(keep, notes),
    cleanup_tmp_directories=True,
    async_options=ocp.options.AsyncOptions(post_finalization_callback=prove),
  )
  return Checkpoints(ocp.CheckpointManager(root, options=options), notes, dict(made_of or {}))


@dataclasses.dataclass(frozen=True)
class _Kept(policies.PreservationPolicy):
  """The newest, the newest regular ones, and the best."""

  count: int
  notes: Mapping[int, Note]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    steps = [c.step for c in checkpoints]
    notes = {step: self.notes[step] for step in steps if step in self.notes}
    kept = {*steps[-1:], *[step for step in notes if notes[step].regular][-self.count :]}
    if found := _best(notes):
      kept.add(found[0])
    return [step in kept for step in steps]


def save(
  checkpoints: Checkpoints,
  state: State,
  cursor: dict[str, Any],
  score: float | None,
  *,
  regular: bool = True,
  rollbacks: tuple[int, int] = (0, 0),
) -> None:
  """Begins to write the state under its own step number, unless it is there already.

  The state may be donated as soon as this returns; `wait` tells when the checkpoint is whole.

  Args:
    checkpoints: from `open_checkpoints`.
    state: what is written.
    cursor: the place in the data, as JSON can hold it.
    score: of this step's evaluation, greater is better; None if it was not evaluated.
    regular: see `Note`.
    rollbacks: see `Note`.

  Raises:
    InputError: this one, or the one before, cannot be written; older ones are untouched.
  """
  wait(checkpoints)
  step = int(state.step)
  if step in checkpoints.steps:
    return
  # Asked first, because Orbax's threads print a page of tracebacks when the disk fills up.
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SLACK
  free = shutil.disk_usage(checkpoints.folder).free
  if free < needed:
    raise InputError(
      f'{checkpoints.folder / str(step)}: the checkpoint needs {needed / 2**20:.1f} MiB, and '
      f'{free / 2**20:.1f} MiB are free; make room, or choose another folder'
    )
  note = Note(score, regular, checkpoints.made_of, rollbacks)
  checkpoints.notes[step] = note
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state),
    data=ocp.args.JsonSave(dict(cursor)),
    note=ocp.args.JsonSave(note._asdict()),
  )
  try:
    checkpoints.manager.save(step, args=items)
  except (OSError, ValueError) as error:
    raise _unwritten(checkpoints, step, error) from error


def wait(checkpoints: Checkpoints) -> None:
  """Waits until the checkpoint that is being written is whole.

  Raises:
    InputError: it cannot be written; older ones are untouched.
  """
  try:
    checkpoints.manager.wait_until_finished()
  except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
    raise _unwritten(checkpoints, max(checkpoints.notes), error) from error


def check(checkpoints: Checkpoints) -> None:
  """Raises what `wait` would, without waiting."""
  if not checkpoints.manager.is_saving_in_progress():
    wait(checkpoints)


def _unwritten(checkpoints: Checkpoints, step: int, error: Exception) -> InputError:
  return InputError(
    f'{checkpoints.folder / str(step)}: the checkpoint cannot be written '
    f'({str(error).splitlines()[0]}); make room, or choose another folder'
  )


def restore(
  checkpoints: Checkpoints, like: State, steps: Sequence[int] | None = None
) -> Restored | None:
  """The newest whole checkpoint, or None where there is none.

  Args:
    checkpoints: from `open_checkpoints`.
    like: a state, or its shapes, types and shardings, that the checkpoint must have.
    steps: those to choose from, in place of all.

  Raises:
    InputError: checkpoints are there, and every one is damaged, or the newest whole one is that of
      another model, method, update rule or base.
  """
  wait(checkpoints)
  steps = checkpoints.steps if steps is None else steps
  found = _newest_whole(checkpoints, steps) if jax.process_index() == 0 else None
  step, damaged = shard.every(found)[0]
  if step is None and damaged:
    raise InputError(
      f'{checkpoints.folder}: the checkpoints of steps {", ".join(map(str, damaged))} are all '
      'damaged (a file is missing, cut short or changed); remove the folder to start anew'
    )
  if step is None:
    return None
  folder = checkpoints.folder / str(step)
  note = _read_note(folder)
  _check_made_of(folder, note.made_of, checkpoints.made_of)
  _check(folder, like)
  items = ocp.args.Composite(
    state=ocp.args.StandardRestore(shapes(like)), data=ocp.args.JsonRestore()
  )
  read = checkpoints.manager.restore(step, args=items)
  for bad in damaged:
    delete(checkpoints, bad)
  return Restored(State(*read['state']), read['data'], note, tuple(damaged))


def best(checkpoints: Checkpoints) -> tuple[int, float] | None:
  """The step with the best score and that score, if any step has one; of equals the first."""
  return _best({step: checkpoints.notes[step] for step in checkpoints.steps})


def regular(checkpoints: Checkpoints) -> list[int]:
  """The steps whose checkpoints an undisturbed run has too, in order."""
  return [step for step in checkpoints.steps if checkpoints.notes[step].regular]


def shapes(state: State) -> State:
  """What `restore` needs to know of a state that may be gone by then."""
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


def delete(checkpoints: Checkpoints, step: int) -> None:
  """Removes the checkpoint of a step."""
  checkpoints.manager.delete(step)
  checkpoints.notes.pop(step, None)


def _best(notes: Mapping[int, Note]) -> tuple[int, float] | None:
  scored = [(step, note.score) for step, note in sorted(notes.items()) if note.score is not None]
  return max(scored, key=lambda pair: pair[1], default=None)


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


def _check_made_of(folder: pathlib.Path, saved: Mapping[str, str], own: Mapping[str, str]) -> None:
  for name in own:
    if name in saved and saved[name] != own[name]:
      raise InputError(
        f'{folder}: {name} holds something else than when the checkpoint was made (digest '
        f'{saved[name]} then, {own[name]} now); bring back what it was, or choose another folder'
      )


def _read_note(folder: pathlib.Path) -> Note:
  """The note of a checkpoint; that of one which nobody wants to keep, if it cannot be read."""
  try:
    return Note(**json.loads((folder / 'note' / 'metadata').read_text()))
  except (OSError, TypeError, ValueError):
    return Note(regular=False)


def _digests(folder: pathlib.Path) -> dict[str, str]:
  digests = {}
  for path in sorted(p for p in folder.rglob('*') if p.is_file() and p.name not in _LATER):
    with path.open('rb') as file:
      name = path.relative_to(folder).as_posix()
      digests[name] = hashlib.file_digest(file, 'blake2b').hexdigest()
  return digests


def _newest_whole(checkpoints: Checkpoints, steps: Sequence[int]) -> tuple[int | None, list[int]]:
  """The newest of these steps that is whole, if any is, and the newer ones that are not."""
  damaged: list[int] = []
  for step in sorted(steps, reverse=True):
    if _whole(checkpoints.folder / str(step)):
      return step, damaged
    damaged.append(step)
  return None, damaged


def _whole(folder: pathlib.Path) -> bool:
  try:
    wanted = json.loads((folder / DIGESTS).read_text())
    found = _digests(folder)
  except (OSError, ValueError):
    return False
  return isinstance(wanted, dict) and wanted.items() <= found.items()
