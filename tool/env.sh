# Sets PYTHON to an interpreter that can run this project: read by the other scripts with `.`
#
# Taken in this order: $PYTHON, the active environment if it has what is needed, .venv here. With `install_env`
# a missing one is made: .venv, and the project in it.

suitable() {
    "$1" -c 'import sys, importlib.util as u
from importlib.metadata import version
names = "torch torchvision numpy cv2 PIL yaml pydantic timm tensorboardX tqdm jinja2".split() + sys.argv[1:]
old = sys.version_info < (3, 10) or tuple(map(int, version("torch").split(".")[:2])) < (2, 11)
sys.exit(old or not all(map(u.find_spec, names)))' $2 >/dev/null 2>&1
}

find_env() {
    for candidate in "${PYTHON:-}" python python3 .venv/bin/python; do
        [ -n "$candidate" ] && suitable "$candidate" "${1:-}" && PYTHON=$candidate && return 0
    done
    return 1
}

need_env() {
    find_env && return 0
    echo "error: no Python with this project's packages. Run: sh tool/quickstart.sh" >&2
    echo "       or, in an environment of your own: python -m pip install -e ." >&2
    exit 2
}

# work_in FOLDER DATASET EXPERIMENT: in a folder that has this experiment in a config/ of its own, else here
work_in() {
    [ -f "$1/config/${2:-}/${2:-}_${3:-}.yaml" ] || return 0
    case $PYTHON in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac
    PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
    cd "$1" || exit 1
}

# install_env EXTRA MODULES: EXTRA is "" or "[test]"; MODULES are what the extra must bring
install_env() {
    find_env "$2" && return 0
    base=python3
    command -v "$base" >/dev/null 2>&1 || { echo "error: python3 is needed" >&2; exit 2; }
    # conda's base holds conda itself and is active in most shells: only an environment that was chosen is installed into
    if [ -n "${VIRTUAL_ENV:-}" ] || { [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; }; then
        PYTHON=python
    else
        [ -x .venv/bin/python ] || "$base" -m venv .venv || {
            echo "error: python3 -m venv failed; install your system's python3-venv package" >&2
            exit 2
        }
        PYTHON=.venv/bin/python
    fi
    echo "installing into $("$PYTHON" -c 'import sys; print(sys.prefix)') (PyTorch is large: minutes)"
    "$PYTHON" -m pip install --quiet --editable ".$1" || exit 1
}

# PyTorch's store and sockets write a page of stack frames where a host goes; the launcher tells it in one line.
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"
