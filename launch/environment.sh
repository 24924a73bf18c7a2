# Makes (once) and enters the project's environment; sourced by demo.sh and test.sh.
# An environment that is already active is used as it is, if t3d and pytest are installed in it.
# T3D_VENV names another place for it than .venv.
if [ -z "${VIRTUAL_ENV:-}" ] || ! (cd / && python -c 'import t3d, jax, flax, pytest') 2>/dev/null; then
    python=${PYTHON:-python3}
    venv=${T3D_VENV:-.venv}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "t3d needs Python 3.11 or newer; set PYTHON to one (found: $("$python" --version 2>&1))" >&2
        exit 2
    fi
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    . "$venv/bin/activate"
    stamp="$venv/t3d-installed"
    if [ ! -f "$stamp" ] || [ setup.cfg -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
        echo "Installing t3d into $venv (a few minutes, once) …"
        python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
        touch "$stamp"
    fi
fi
