#!/bin/sh
# Format, lint, types and tests, after installing what they need:
#
#   sh tool/check.sh [fast|all|slow|faults|gpu] [arguments of pytest]
#
# fast: before a commit, under 90 seconds; all, the default: what CI runs. CONTRIBUTING.md says what each tier holds.
cd "$(dirname "$0")/.." || exit 1
. tool/env.sh
install_env "[test]" "pytest ruff mypy sklearn hypothesis psutil xdist cityscapesscripts aiohttp"
case "${1:-}" in
    fast | slow | faults | gpu) tier=$1; shift ;;
    all) tier=; shift ;;
    *) tier= ;;
esac
"$PYTHON" -m ruff check . && "$PYTHON" -m ruff format --check . || exit
"$PYTHON" -m mypy || exit
# The pictures of the tests are tiny: threads of several processes would only wait for one another.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Tests of one file need not run in the same process: a few files take most of the time.
[ "$tier" = gpu ] || set -- -n logical --maxprocesses 4 --dist worksteal "$@"
[ "$tier" != fast ] || tier="fast and not slow and not faults and not gpu"
exec "$PYTHON" -m pytest -q ${tier:+-m "$tier"} "$@"
