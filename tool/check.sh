#!/bin/sh
# Lint and tests, after installing what they need. Arguments go to pytest.
cd "$(dirname "$0")/.." || exit 1
. tool/env.sh
install_env "[test]" "pytest ruff sklearn hypothesis psutil xdist"
"$PYTHON" -m ruff check . && "$PYTHON" -m ruff format --check . || exit
# Tests of one file need not run in the same process: a few files take most of the time.
exec "$PYTHON" -m pytest -q -n logical --maxprocesses 4 --dist worksteal "$@"
