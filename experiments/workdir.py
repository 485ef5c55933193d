"""A work directory belongs to one configuration: claiming it, and telling when it is finished."""

import json
import pathlib
from typing import Any

from experiments.keys import Config, flatten
from jaxtune import report
from jaxtune.typing import InputError

FORMAT = 1  # of the files in a work directory; raised when older versions cannot read them
RUN = 'run.json'
RESULT = 'result.json'


def check(workdir: pathlib.Path, config: Config) -> None:
  """Sees that the folder is free, or holds a run of this very configuration.

  Raises:
    InputError: it holds a run of another configuration, or of a newer version of jaxtune.
  """
  if not (workdir / RUN).exists():
    return
  found = dict(flatten(read_run(workdir)['config']))
  given = dict(flatten(json.loads(config.to_json())))
  differences = [
    f'{name} is {found.get(name, "missing")!r} there and {given.get(name, "missing")!r} here'
    for name in sorted({*found, *given})
    # How a finished run will be evaluated, and what is traced of it, changes nothing of the run.
    if found.get(name) != given.get(name) and not name.startswith(('evaluate.', 'train.profile'))
  ]
  if differences:
    raise InputError(
      f'{workdir} holds a run of another configuration: {"; ".join(differences)}; '
      'give another --workdir, or the same configuration to resume'
    )


def claim(workdir: pathlib.Path, config: Config) -> None:
  """Makes the folder this configuration's own."""
  check(workdir, config)
  if not (workdir / RUN).exists():
    workdir.mkdir(parents=True, exist_ok=True)
    run = {
      'format': FORMAT,
      'config': json.loads(config.to_json()),
      'versions': report.versions(),
    }
    write_json(workdir / RUN, run)


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
