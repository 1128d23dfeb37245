#!/usr/bin/env bash
# Install, check the style, run the tests (no GPU, no download of weights). Arguments go to pytest:
# -m "not slow" for the fast part, -n 0 for one process.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
install_once test -r requirements.txt -e '.[tests]'
ruff check .
ruff format --check .
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 "$@"
