# Sourced by run.sh and scripts/test.sh from the root of the repository. Uses the active environment, otherwise creates
# .venv. Installs once, and again if requirements.txt or setup.py changes.

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -d .venv ] || "${PYTHON:-python3}" -m venv .venv
    . .venv/bin/activate
fi

install_once() { # install_once STAMP PIP-ARGUMENTS...
    local stamp wanted
    stamp="$(python -c 'import sys; print(sys.prefix)')/.edg-$1"
    wanted="$PWD $(cat requirements.txt setup.py | cksum)"
    shift
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "Installing into $(python -c 'import sys; print(sys.prefix)') ..."
        python -m pip install --quiet --disable-pip-version-check "$@"
        echo "$wanted" > "$stamp"
    fi
}
