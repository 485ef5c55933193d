"""How every experiment starts and fails: one clear line for what the user can mend."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

from absl import app, logging

from jaxtune.typing import InputError

INTERRUPTED = 130  # the shell's exit code of SIGINT


def launch(main: Callable[[], int | None]) -> None:
  """Parses the flags and runs `main`; bad input is one line on stderr and exit code 1."""

  def guarded(arguments: list[str]) -> int | None:
    if len(arguments) > 1:
      raise app.UsageError(f'unknown argument {arguments[1]!r}; flags start with --')
    logging.set_verbosity(logging.ERROR)
    try:
      return main()
    except (InputError, OSError) as error:
      print(f'error: {error}', file=sys.stderr)
      return 1

  app.run(guarded)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
  """Yields a function that tells whether SIGINT (Ctrl-C) or SIGTERM came; a second ends at once."""
  asked = False

  def ask(number: int, frame: object) -> None:
    nonlocal asked
    asked = True
    for name in (signal.SIGINT, signal.SIGTERM):
      signal.signal(name, previous[name])

  previous = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield lambda: asked
  finally:
    for name, handler in previous.items():
      signal.signal(name, handler)
