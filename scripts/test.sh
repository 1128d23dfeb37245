#!/usr/bin/env bash
# Sets itself up and runs the tests: style, then the suite (no GPU, no download). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
install_once test -r requirements.txt -e '.[tests]'
ruff check .
ruff format --check .
exec python -m pytest "$@"
