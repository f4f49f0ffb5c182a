#!/bin/sh
# Lint and tests, after installing what they need. Arguments go to pytest.
cd "$(dirname "$0")/.." || exit 1
. tool/env.sh
install_env "[test]" "pytest ruff sklearn hypothesis lz4 psutil"
"$PYTHON" -m ruff check . || exit
exec "$PYTHON" -m pytest -q "$@"
