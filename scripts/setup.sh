#!/usr/bin/env bash
# Creates the environment and installs the package with the versions of constraints.txt.
# usage: setup.sh PYTHON VENV
set -euo pipefail

python=$1
venv=$2
wanted='.[train,dev]'

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "find-fix-reason needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1 || true)." >&2
  echo "Name another one: make PYTHON=/path/to/python3.12 ..." >&2
  exit 1
fi

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  echo "Creating $venv with $("$python" --version) ..."
  if ! "$python" -m venv "$venv"; then
    echo "'$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
  fi
fi

echo "Installing $wanted (several GB on the first run; a few minutes) ..."
# uv is several times faster; pip is the way out where it cannot be had. No cache next to the sources,
# no stale index of another project.
if "$venv/bin/python" -m pip install -q 'uv>=0.9' &&
  VIRTUAL_ENV="$PWD/$venv" "$venv/bin/uv" pip install -q -c constraints.txt -e "$wanted"; then
  echo "Installed with uv."
else
  echo "uv did not do it; installing with pip ..."
  "$venv/bin/python" -m pip install -q -c constraints.txt -e "$wanted"
fi
