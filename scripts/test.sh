#!/usr/bin/env bash
# Install, check the style, run the tests (no GPU, no download of weights). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
install_once test -r requirements.txt -e '.[tests]'
ruff check .
ruff format --check .
exec python -m pytest "$@"
