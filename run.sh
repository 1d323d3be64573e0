#!/usr/bin/env bash
# bash run.sh              set up .venv, then train, evaluate and export on the drawn sample data
# bash run.sh test         set up .venv with the test tools, then run all tests
# bash run.sh MODULE ...   set up .venv, then python -m fmd_tf.MODULE ... (for example train)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="$root/.venv/bin/python"

find_python() {  # print the first Python that TensorFlow has packages for
    local name supported="import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
    local names=(python3 python3.13 python3.12 python3.11)
    [[ -z "${PYTHON:-}" ]] || names=("$PYTHON")
    for name in "${names[@]}"; do
        if "$name" -c "$supported" 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    name="${names[0]}"
    echo "run.sh: expected Python 3.11, 3.12 or 3.13," \
        "found $("$name" --version 2>/dev/null || echo "no $name");" \
        "install one, or say where it is: PYTHON=/path/to/python3.12 bash run.sh" >&2
    return 1
}

set_up() {  # $1: what of the project to install, for example "" or "[dev]"
    local stamp="$root/.venv/installed$1"
    if [[ ! -e "$stamp" || "$root/pyproject.toml" -nt "$stamp" ]]; then
        echo "Setting up $root/.venv (a few minutes the first time)"
        if ! "$python" -m pip --version >/dev/null 2>&1; then
            local found
            found="$(find_python)"
            "$found" -m venv --clear "$root/.venv"
        fi
        "$python" -m pip install --quiet --disable-pip-version-check --editable "$root$1"
        touch "$stamp"
    fi
}

case "${1:-}" in
    "")
        set_up ""
        cd "$root"
        exec "$python" -m fmd_tf.train --sample --weights centerface --image-size 75 --epochs 10 \
            --checkpoint-dir checkpoints/sample --results-dir results/sample \
            --export-dir savedmodel/sample
        ;;
    test)
        set_up "[dev]"
        cd "$root"
        "$python" -m ruff check .
        "$python" -m ruff format --check .
        "$python" -m mypy
        exec "$python" -m pytest -n logical --maxprocesses 4 --dist worksteal "${@:2}"
        ;;
    *)
        set_up ""
        exec "$python" -m "fmd_tf.$1" "${@:2}"
        ;;
esac
