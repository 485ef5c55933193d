"""What every training script does with its flags: claim the folder, build the job, run it."""

import contextlib
import pathlib
from typing import Any

from experiments import build, finish, keys, preview, processes, run, workdir
from experiments.keys import Config
from jaxtune.typing import InputError


@processes.joined()
def start(config: Config, folder: str | None, *, dry_run: bool, pretrained: bool) -> int:
  """Runs a configuration in a folder, or prints what it would do; returns the exit code.

  Raises:
    InputError: no folder, or a configuration for the other script.
  """
  processes.check_setup(config)
  keys.check(config)
  if bool(config.model) != pretrained:
    raise InputError(
      'model is empty; give one with --config.model=..., or train from scratch with '
      'experiments.pretrain'
      if pretrained
      else f'model is {config.model!r}; to start from a pretrained model use experiments.finetune'
    )
  if dry_run:
    return preview.preview(build.job(config))
  if not folder:
    raise InputError('--workdir is missing: the folder of this run')
  path = pathlib.Path(folder)

  def finished() -> dict[str, Any] | None:
    workdir.check(path, config, longer=True)
    return workdir.finished(path, config)

  done = processes.decided(finished)
  if not done:
    with contextlib.ExitStack() as stack:
      processes.decided(lambda: stack.enter_context(workdir.locked(path)))
      # Again: another run may have begun, and even ended, in between.
      done = processes.decided(finished)
      if not done:
        return run.run(build.job(config), path)
  print(f'{path} holds this run, finished at step {done["step"]}; nothing to do')
  finish.say(path, done['headline'])
  return 0
