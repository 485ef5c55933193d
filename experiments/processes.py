"""The processes of one run: how they meet, and what the first of them decides for all.

Slurm, Open MPI and indexed jobs of Kubernetes say by themselves how many processes there are, which
one this is and where the first one listens: JAX reads it. Elsewhere these variables say so, and one
process alone needs none of it:

  JAX_COORDINATOR_ADDRESS      host:port, where process 0 listens
  JAX_NUM_PROCESSES            how many there are
  JAX_PROCESS_ID               which one this is, from 0
  JAX_INITIALIZATION_TIMEOUT   seconds until all of them have to be there
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed  # JAX has no other name for the address that it found
from jax.experimental import multihost_utils

from experiments import entry
from experiments.keys import Config, flatten
from jaxtune import report, shard
from jaxtune.typing import InputError

ADDRESS, COUNT, INDEX = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
TIMEOUT = 'JAX_INITIALIZATION_TIMEOUT'
HEARTBEAT = 10  # seconds without a sign of life after which a process counts as dead
FINISH = 3600  # seconds that the others wait at the end, while the first one exports


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Around a run: meets its other processes, if there are any, before anything is computed.

  Inside, the first one alone has a standard output, and whoever fails ends at once: Python's own
  way out would wait for the others, which wait for this one.

  Raises:
    InputError: what the environment says of the processes makes no sense, or is not enough.
  """
  _meet()
  try:
    yield
  except BaseException as error:
    if not jax.distributed.is_initialized():
      raise
    code = _said(error)
    sys.stdout.flush()
    os._exit(code)


def _meet() -> None:
  address, count, index = os.environ.get(ADDRESS), _number(COUNT), _number(INDEX)
  if count == 1 or (count is None and not address and not _detected()):
    return
  if address:
    _check_address(address, listens=index == 0)
  method = 'mpi4py' if _open_mpi() and not _orte() else None
  if address and None not in (count, index):  # what is said counts, wherever this is
    method = 'deactivate'
  seconds = _number(TIMEOUT) or 300
  # Behind its own time-out JAX aborts with a page of addresses in memory: this comes before.
  timer = threading.Timer(seconds, _missed, [seconds])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      num_processes=count,
      process_id=index,
      cluster_detection_method=method,
      initialization_timeout=seconds + 60,
      heartbeat_timeout_seconds=HEARTBEAT,
      shutdown_timeout_seconds=FINISH,
    )
  except Exception as error:  # of JAX, of mpi4py or of Kubernetes
    raise InputError(
      f'the processes of this run cannot meet ({str(error).splitlines()[0].rstrip(".")}); set '
      f'{ADDRESS} to host:port of process 0, {COUNT}, and {INDEX} from 0 to one less'
    ) from error
  finally:
    timer.cancel()
  _quiet()


def _check_address(address: str, listens: bool) -> None:
  port = address.rpartition(':')[2]
  if ':' not in address or not port.isdecimal() or not 0 < int(port) < 1 << 16:
    raise InputError(f'{ADDRESS} is {address!r}; it must be host:port')
  if listens:  # asked first, because JAX crashes where the port is taken
    try:
      socket.create_server(('', int(port))).close()
    except OSError as error:
      raise InputError(
        f'{ADDRESS} is {address}, and process 0 cannot listen there ({error}); choose another port'
      ) from error


def _said(error: BaseException) -> int:
  """Says why this process ends, and gives its exit code."""
  own = f'process {jax.process_index()} of {jax.process_count()}'
  if isinstance(error, InputError | OSError):
    return entry.fail(str(error))
  if isinstance(error, KeyboardInterrupt):
    print(f'interrupted: {own}', file=sys.stderr)
    return entry.INTERRUPTED
  if isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' not in str(error):
    entry.fail(
      f'{own} has lost another one ({str(error).splitlines()[0]}); start all of them again'
    )
    return entry.PREEMPTED
  if isinstance(error, SystemExit):
    return error.code if isinstance(error.code, int) else 1
  traceback.print_exception(error)
  return 1


def _detected() -> bool:
  """Whether a launcher that JAX knows has started several processes."""
  slurm = os.environ.get('SLURM_STEP_NUM_TASKS', '1')  # of srun; a shell in an allocation has 1
  kubernetes = {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= set(os.environ)
  return slurm not in ('', '1') or _open_mpi() or kubernetes


def _open_mpi() -> bool:
  return os.environ.get('OMPI_COMM_WORLD_SIZE', '1') != '1'


def _orte() -> bool:
  """Whether it is older than version 5, and says without mpi4py where its first process is."""
  return 'OMPI_MCA_orte_hnp_uri' in os.environ


def _number(name: str) -> int | None:
  text = os.environ.get(name)
  if not text:
    return None
  if not text.isdecimal():
    raise InputError(f'{name} is {text!r}; it must be a whole number')
  return int(text)


def _missed(seconds: int) -> None:
  found = distributed.global_state
  where = found.coordinator_address or os.environ.get(ADDRESS, 'an address nobody knows')
  if found.process_id:
    what = f'the coordinator, process 0, did not answer at {where} within {seconds} s'
  else:
    what = f'process 0 waited {seconds} s at {where}, and not all others came'
  entry.fail(f'{what}; see that all processes run and reach that address, or raise {TIMEOUT}')
  os._exit(1)


def _quiet() -> None:
  """Drops what libraries print to the standard output, and all of it but of the first process."""
  sys.stdout.flush()
  out = os.dup(1)
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 1)
  if jax.process_index() == 0:
    sys.stdout = os.fdopen(out, 'w', buffering=1)


def first() -> bool:
  """Whether this is the process that writes."""
  return jax.process_index() == 0


def decided(function: Callable[[], Any]) -> Any:
  """What `function()` gives in the first process, which alone calls it, as JSON can hold it.

  So no clock, host name or view of a shared folder can lead two processes apart.

  Raises:
    InputError, OSError: of the function, in the first process; the others end without a word.
  """
  if jax.process_count() == 1:
    return function()
  value, error = None, None
  if first():
    try:
      value = function()
    except (InputError, OSError) as found:
      error = found
  value, failed = shard.every([value, error is not None])[0]
  if failed:
    _end(error)
  return value


def check_alike(values: Mapping[str, Any]) -> None:
  """Sees that all processes have the same values, as JSON can hold them.

  Raises:
    InputError: they do not, in the first process; the others end without a word.
  """
  firsts, *others = [dict(flatten(found)) for found in shard.every(values)]
  for index, found in enumerate(others, 1):
    for name in sorted({*firsts, *found}):
      if firsts.get(name) != found.get(name):
        _end(
          InputError(
            f'process {index} has {name}={found.get(name)!r}, and process 0 has '
            f'{firsts.get(name)!r}; start all processes of a run alike'
          )
        )


def check_setup(config: Config) -> None:
  """Sees that all processes run the same configuration and packages."""
  if jax.process_count() > 1:
    version = {k: v for k, v in report.versions().items() if k not in report.MACHINE}
    check_alike({'config': json.loads(config.to_json()), 'version': version})


def _end(error: Exception | None) -> NoReturn:
  """Ends all processes; the first one says why, because it outlives the others by seconds."""
  if error and first():
    raise error
  os._exit(1)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
  """`entry.interruptible`, with all processes stopping at the same step, whichever is asked.

  What it yields is called in every step: JAX, which has taken SIGTERM for itself, tells the others,
  and all agree on one of the next calls without waiting for one another before.
  """
  if jax.process_count() == 1:
    with entry.interruptible() as alone:
      yield alone
    return
  calls = itertools.count()
  code, wanted = 0, entry.PREEMPTED

  def stop() -> int:
    nonlocal code
    if not code and multihost_utils.reached_preemption_sync_point(next(calls)):
      code = wanted
    return code

  def ask(number: int, frame: object) -> None:
    nonlocal wanted
    wanted = entry.INTERRUPTED
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one ends at once
    signal.raise_signal(signal.SIGTERM)

  previous = signal.signal(signal.SIGINT, ask)
  try:
    yield stop
  finally:
    signal.signal(signal.SIGINT, previous)
