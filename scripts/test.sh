#!/usr/bin/env bash
# Install, check the style, run the tests (no GPU, no download of weights) in two processes of one thread each.
# Arguments go to pytest: -m "not slow" for the fast part, -n or -p no:xdist for another number of processes.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
install_once test -r requirements.txt -e '.[tests]'
ruff check .
ruff format --check .
export OMP_NUM_THREADS=1
processes=(-n 2 --dist loadfile)
case " $* " in *" -n"* | *" --numprocesses"* | *" no:xdist "* | *" -pno:xdist "*) processes=() ;; esac
exec python -m pytest "${processes[@]}" "$@"
