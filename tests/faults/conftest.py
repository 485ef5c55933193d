"""Real runs of the tiny models of `tests/experiments`, to be disturbed."""

from tests.experiments.conftest import (  # noqa: F401
  assert_same_export,
  config_file,
  configure,
  exported,
  files,
  shell,
  trained_steps,
)
