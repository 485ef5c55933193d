"""How every experiment starts and fails: one clear line for what the user can mend."""

import ast
import contextlib
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging

from experiments import compilations, keys
from jaxtune.typing import InputError

INTERRUPTED = 130  # the shell's exit code of SIGINT, of a person who wants it to end
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h, after SIGTERM: the same command goes on


def launch(
  main: Callable[[], int | None], check_key: Callable[[str], None] = keys.check_key
) -> None:
  """Parses the flags and runs `main`; bad input is one line on stderr and exit code 1.

  `check_key` refuses a `--config.KEY` that the script does not know.
  """

  # A script that starts a job behind itself has its jobs ignore SIGINT; a run never does.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  signal.signal(signal.SIGTERM, terminated)

  def guarded(arguments: list[str]) -> int | None:
    logging.set_verbosity(logging.FATAL)  # what libraries log as errors they also raise
    sys.unraisablehook = unraisable
    if len(arguments) > 1:
      return fail(f'unknown argument {arguments[1]!r}; flags start with --')
    compilations.keep()
    try:
      return main()
    except (InputError, OSError) as error:
      fail(str(error))
      # At once: threads of libraries would print tracebacks of the same fault on their way out.
      sys.stdout.flush()
      os._exit(1)
    except KeyboardInterrupt:
      print('interrupted', file=sys.stderr)
      return INTERRUPTED

  app.run(guarded, flags_parser=functools.partial(parse, check_key=check_key))


def unraisable(found: Any) -> None:
  """Leaves out what tensorstore says of each write that came behind one that failed."""
  if str(found.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(found)


def fail(message: str) -> int:
  """Prints one line and gives the exit code."""
  print('error: ' + ' '.join(message.split()), file=sys.stderr)
  return 1


def parse(arguments: list[str], check_key: Callable[[str], None] = keys.check_key) -> list[str]:
  """The arguments that are no flags; ends with one line on a flag that cannot be used."""
  rest, named = [], {}
  try:
    for argument in arguments:
      key = re.match(r'--?config\.([^=]+)(?:=(.*))?$', argument, re.DOTALL)
      if key:
        check_key(key[1])
      if key and key[2] is not None and key[1].startswith(keys.FREE):
        named[key[1]] = literal(key[2])
      else:
        rest.append(argument)
    sys.argv = rest  # where ml_collections looks for the keys that are given
    left = flags.FLAGS(rest)
    for name, value in named.items():  # flags exist only for the keys that the file has
      *parents, last = name.split('.')
      node = functools.reduce(lambda node, parent: node[parent], parents, flags.FLAGS.config)
      with node.unlocked():
        node[last] = value
    return left
  except (flags.Error, InputError, OSError) as error:
    sys.exit(fail(str(error)))
  except (AttributeError, ImportError, KeyError, SyntaxError, TypeError, ValueError) as error:
    # Raised by a configuration file while it runs, or by a value of the wrong type.
    sys.exit(fail(f'--config: {type(error).__name__}: {error}'))


def literal(text: str) -> Any:
  """A number, a tuple or another Python literal; else the text itself."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def terminated(number: int, frame: object) -> None:
  """What SIGTERM does where there is nothing to save."""
  print('terminated', file=sys.stderr)
  sys.exit(PREEMPTED)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
  """Yields a function that says with which code to end, 0 for going on.

  SIGINT (Ctrl-C) or SIGTERM make it so; a second one ends at once.
  """
  code = 0

  def ask(number: int, frame: object) -> None:
    nonlocal code
    code = INTERRUPTED if number == signal.SIGINT else PREEMPTED
    for name in (signal.SIGINT, signal.SIGTERM):
      signal.signal(name, previous[name])

  previous = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield lambda: code
  finally:
    for name, handler in previous.items():
      signal.signal(name, handler)
