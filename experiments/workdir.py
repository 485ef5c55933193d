"""A work directory belongs to one configuration, and to one process that runs it."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import IO, Any

from experiments.keys import Config, flatten
from jaxtune import report
from jaxtune.typing import InputError

FORMAT = 1  # of the files in a work directory; raised when older versions cannot read them
RUN = 'run.json'
RESULT = 'result.json'
LOCK = 'lock'
# How a finished run will be evaluated, what is traced of it, and the budget of a loop over runs,
# which may grow, change nothing of the run.
WITHOUT_EFFECT: tuple[str, ...] = ('evaluate.', 'train.profile', 'tune.steps', 'tune.minutes')
LENGTH = ('train.steps', 'train.epochs')  # what may grow when a run is finished


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Makes the folder and keeps other runs out of it; one that it made and that stays empty goes.

  The lock ends with the process that holds it, however that ends: what a killed run left is no
  obstacle, and no clock or host name decides anything. Those in the file are for people.

  Raises:
    InputError: another run is at work in it; it is named.
  """
  new = not workdir.exists()
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / LOCK
  with _lock(path) as file:
    file.truncate(0)
    since = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
    with contextlib.suppress(OSError):  # no room: what the run writes first says so, with its name
      file.write(f'process {os.getpid()} on {socket.gethostname()} since {since}'.encode())
    try:
      yield
    finally:
      path.unlink(missing_ok=True)
      if new:
        with contextlib.suppress(OSError):  # a run is in it
          workdir.rmdir()


def _lock(path: pathlib.Path) -> IO[bytes]:
  while True:
    file = open(path, 'a+b', buffering=0)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      with file:
        file.seek(0)
        owner = file.read().decode(errors='replace') or 'which has just begun'
      raise InputError(
        f'{path.parent} is in use by another run, {owner}; wait for its end, stop it, or give '
        'another --workdir'
      ) from None
    except OSError as error:
      print(f'{path.parent} cannot be locked ({error.strerror}); start no other run in it')
      return file
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        return file
    file.close()  # its owner has removed it in between


def check(workdir: pathlib.Path, config: Config, *, longer: bool = False) -> None:
  """Sees that the folder is free, or holds a run of this very configuration.

  With `longer` a finished run may be given more steps.

  Raises:
    InputError: it holds a run of another configuration, or of a newer version of jaxtune.
  """
  if not (workdir / RUN).exists():
    return
  found = dict(flatten(read_run(workdir)['config']))
  given = dict(flatten(json.loads(config.to_json())))
  free = WITHOUT_EFFECT
  if longer and result(workdir) and _longer(given, found):
    free += LENGTH
  differences = [
    f'{name} is {found.get(name, "missing")!r} there and {given.get(name, "missing")!r} here'
    for name in sorted({*found, *given})
    if found.get(name) != given.get(name) and not name.startswith(free)
  ]
  if differences:
    raise InputError(
      f'{workdir} holds a run of another configuration: {"; ".join(differences)}; '
      'give another --workdir, or the same configuration to resume'
    )


def _longer(given: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
  steps, epochs = LENGTH
  if given[steps] and found[steps]:
    return given[steps] > found[steps]
  return given[steps] == found[steps] and given[epochs] > found[epochs]


def claim(workdir: pathlib.Path, config: Config, *, longer: bool = False) -> int:
  """Makes the folder this configuration's own; a finished run in it is one no more.

  Returns the last step of the finished run that is given more steps, 0 where there is none.
  """
  check(workdir, config, longer=longer)
  run = read_run(workdir) if (workdir / RUN).exists() else None
  if run is None or length(Config(run['config'])) != length(config):
    done = result(workdir) or {}
    run = {
      'format': FORMAT,
      'config': json.loads(config.to_json()),
      'versions': report.versions(),
      'extends': done.get('last', done.get('step', 0)),
    }
    write_json(workdir / RUN, run)
  # Only now: until then the run of another length is taken for unfinished.
  (workdir / RESULT).unlink(missing_ok=True)
  return run.get('extends', 0)


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
  """What `claim` wrote.

  Raises:
    InputError: no run there, or one of a newer version.
  """
  path = workdir / RUN
  if not path.is_file():
    raise InputError(f'{workdir} holds no run ({RUN} is missing); give the --workdir of a run')
  run = read_json(path)
  version = run.get('format')
  if isinstance(version, int) and version > FORMAT:
    raise InputError(
      f'{workdir} was written by a newer jaxtune (format {version}; this one reads up to '
      f'{FORMAT}); upgrade jaxtune, or give another --workdir'
    )
  if version != FORMAT or not isinstance(run.get('config'), dict):
    raise InputError(f'{path} is damaged; start again in another --workdir')
  return run


def read_config(workdir: pathlib.Path) -> Config:
  """The resolved configuration of the run in a folder."""
  return Config(read_run(workdir)['config'])


def result(workdir: pathlib.Path) -> dict[str, Any] | None:
  """What the finished run reached; None while it is not finished."""
  path = workdir / RESULT
  if not path.is_file():
    return None
  found = read_json(path)
  if not {'headline', 'step'} <= set(found):
    raise InputError(f'{path} is damaged; start again in another --workdir')
  return found


def finished(workdir: pathlib.Path, config: Config) -> dict[str, Any] | None:
  """What the run reached, if it was finished with as many steps as this configuration wants."""
  found = result(workdir)
  return found if found and found.get('length', length(config)) == length(config) else None


def length(config: Config) -> dict[str, Any]:
  """The keys of a configuration that may grow."""
  values = dict(flatten(config))
  return {name: values.get(name) for name in LENGTH}


def measured(workdir: pathlib.Path, stage: str) -> dict[str, float]:
  """The final numbers of a stage (`before`, `test`) from the log; empty if it has none."""
  for line in report.read_metrics(workdir / 'metrics.jsonl'):
    values = {k.partition('/')[2]: v for k, v in line.items() if k.startswith(f'{stage}/')}
    if values:
      return values
  return {}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """What `write_json` wrote.

  Raises:
    InputError: the file holds something else.
  """
  try:
    values = json.loads(path.read_text())
  except ValueError:
    values = None
  if not isinstance(values, dict):
    raise InputError(f'{path} is damaged; start again in another --workdir')
  return values


def write_json(path: pathlib.Path, values: Any) -> None:
  """Writes a JSON file whole or not at all."""
  report.replace_file(path, (json.dumps(values, indent=2) + '\n').encode())
