#!/usr/bin/env bash
# bash run.sh              set up .venv, then train, evaluate and export on the drawn sample data
# bash run.sh test         set up .venv with the test tools, then run all tests
# bash run.sh MODULE ...   set up .venv, then python -m fmd_tf.MODULE ... (for example train)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="$root/.venv/bin/python"

set_up() {  # $1: what of the project to install, for example "" or "[dev]"
    local stamp="$root/.venv/installed$1"
    if [[ ! -e "$stamp" || "$root/pyproject.toml" -nt "$stamp" ]]; then
        echo "Setting up $root/.venv (a few minutes the first time)"
        [[ -x "$python" ]] || "${PYTHON:-python3}" -m venv "$root/.venv"
        "$python" -m pip install --quiet --disable-pip-version-check --editable "$root$1"
        touch "$stamp"
    fi
}

case "${1:-}" in
    "")
        set_up ""
        cd "$root"
        exec "$python" -m fmd_tf.train --sample --image-size 75 --epochs 16 \
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
