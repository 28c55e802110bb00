#!/usr/bin/env bash
# On a TPU VM worker, beside an archive of the repository: unpacks it into source/ and installs it, with the pinned
# versions, into venv/. Run again, it replaces the code and keeps what is installed.
#
#     bash setup_worker.sh ARCHIVE
set -euo pipefail
cd "$(dirname "$0")"
archive=$1

exec 9>lock
if ! flock --nonblock 9; then
  echo "mllmsubj: a command is running here; stop it first" >&2
  exit 1
fi

# The images' own Python is older than the package needs; uv brings one.
export PATH="$HOME/.local/bin:$PATH"
if ! command -v uv >/dev/null; then
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
fi

rm -rf source
mkdir source
tar -xzf "$archive" -C source
if [[ ! -x venv/bin/python ]]; then
  uv venv --quiet --python 3.11 venv
fi
uv pip install --quiet --python venv/bin/python --constraint source/constraints.txt --editable './source[tpu,train]'
echo "mllmsubj: $(hostname) is set up"
