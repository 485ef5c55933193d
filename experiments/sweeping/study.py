"""Optuna proposes what is tried, and keeps it where its own tools look."""

import contextlib
import importlib.util
import pathlib
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from experiments.keys import Config
from experiments.sweeping import space as spaces
from experiments.sweeping.records import Candidate
from experiments.sweeping.space import Dimension
from jaxtune.typing import InputError

FILE = 'study.db'  # in the work directory
JOURNAL = 'journal:'
OURS = 'jaxtune_folder'  # attribute of a trial: the work directory that runs it


@contextlib.contextmanager
def opened(config: Config, folder: pathlib.Path) -> Iterator[Any]:
  """The study of a sweep, made if it is not there.

  Raises:
    InputError: Optuna is not installed, or as `usable`.
  """
  if importlib.util.find_spec('optuna') is None:
    raise InputError("a sweep needs the package optuna; pip install 'jaxtune[sweep]'")
  import optuna

  optuna.logging.set_verbosity(optuna.logging.ERROR)
  warnings.filterwarnings('ignore', module='optuna')
  with usable(config):
    storage = _storage(config.sweep.storage or f'sqlite:///{(folder / FILE).absolute()}')
    try:
      yield optuna.create_study(
        storage=storage, study_name=config.sweep.study, direction='minimize', load_if_exists=True
      )
    finally:
      if isinstance(storage, optuna.storages.RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def _storage(place: str) -> Any:
  """A database by its URL, or `journal:FILE`."""
  from optuna import storages
  from optuna.storages.journal import JournalFileBackend

  if place.startswith(JOURNAL):
    return storages.JournalStorage(JournalFileBackend(place.removeprefix(JOURNAL)))
  return storages.RDBStorage(place)


@contextlib.contextmanager
def usable(config: Config) -> Iterator[None]:
  """One line for what Optuna and its storage cannot do.

  Raises:
    InputError: a storage that is damaged, locked or unknown, or a study of another space.
  """
  import optuna
  import sqlalchemy.exc

  where = f'{config.sweep.storage or FILE}, study {config.sweep.study!r}'
  try:
    yield
  except InputError:
    raise
  except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError) as error:
    raise InputError(
      f'{where}: Optuna cannot use this storage ({str(error).splitlines()[0]}); if it is damaged '
      'or locked, stop what holds it, or give another --config.sweep.storage'
    ) from None
  except ValueError as error:
    if not str(error).startswith(
      ('CategoricalDistribution', 'Cannot set different', 'Unsupported')
    ):
      raise
    raise InputError(
      f'{where}: it was searched in another space ({str(error).splitlines()[0]}); give another '
      '--config.sweep.study'
    ) from None


def ask(
  study: Any,
  config: Config,
  space: Sequence[Dimension],
  count: int,
  asked: int,
  tried: int,
  folder: pathlib.Path,
) -> list[tuple[int, dict[str, Any]]]:
  """As many new trials, with their values.

  What is proposed depends on the seed, on how often was asked, and on what the study holds, so that
  a sweep that was killed proposes the same again.

  Args:
    study: from `open_study`.
    config: the default setting is proposed first, if the space holds it.
    space: what is searched.
    count: how many.
    asked: how often was asked before.
    tried: candidates that there are already.
    folder: whose trials they are.
  """
  import optuna

  seed = zlib.crc32(f'{config.seed} {asked}'.encode())
  fixed = proposals(config, space)
  study.sampler = (
    optuna.samplers.RandomSampler(seed=seed)
    if config.sweep.sampler == 'random'
    else optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=False)
  )
  found = []
  for number in range(tried, tried + count):
    distributions = {d.key: _distribution(d) for d in space}
    if number < len(fixed):
      study.enqueue_trial(fixed[number], user_attrs={OURS: str(folder.absolute())})
      trial = study.ask(distributions)
    else:
      trial = study.ask(distributions)
      trial.set_user_attr(OURS, str(folder.absolute()))
    found.append((trial.number, {d.key: trial.params[d.key] for d in space}))
  return found


def proposals(config: Config, space: Sequence[Dimension]) -> list[dict[str, Any]]:
  """What is tried before Optuna is asked: the default setting, or all of a grid."""
  if config.sweep.sampler == 'grid':
    return spaces.grid(space)
  default = spaces.values_of(config, space)
  return [default] if all(default[d.key] in d for d in space) else []


def _distribution(dimension: Dimension) -> Any:
  import optuna

  if dimension.choices:
    return optuna.distributions.CategoricalDistribution(dimension.choices)
  return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def tell(
  study: Any,
  candidates: Sequence[Candidate],
  behind: Collection[int],
  steps: int,
  folder: pathlib.Path,
) -> None:
  """Brings the trials to what is known of their candidates; to be repeated without harm.

  Args:
    study: from `open_study`.
    candidates: all of the sweep.
    behind: the numbers of those that go no further.
    steps: of a whole run.
    folder: trials of it that no candidate has were left by a start that was killed.
  """
  import optuna

  state = optuna.trial.TrialState
  own = {candidate.trial: candidate for candidate in candidates if candidate.trial is not None}
  for found in study.get_trials(deepcopy=False):
    candidate = own.get(found.number)
    if found.state.is_finished():
      continue
    if candidate is None:
      if found.user_attrs.get(OURS) == str(folder.absolute()):
        study.tell(found.number, state=state.FAIL)
      continue
    live = optuna.trial.Trial(study, found._trial_id)
    for step, loss in candidate.losses.items():
      if step not in found.intermediate_values:
        live.report(loss, step)
    if candidate.dead:
      study.tell(found.number, state=state.FAIL)
    elif steps in candidate.losses:
      study.tell(found.number, candidate.losses[steps])
    elif candidate.number in behind:
      study.tell(found.number, state=state.PRUNED)
