#!/bin/sh
# Installs what the tests need into a virtual environment of its own, checks style and types, and
# runs the tests. Flags go to pytest:
#   sh scripts/test.sh -m slow
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
"$VENV/bin/ruff" format --check .
"$VENV/bin/ruff" check .
"$VENV/bin/mypy"
exec "$VENV/bin/python" -m pytest -q "$@"
