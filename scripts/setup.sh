#!/bin/sh
# Make a virtual environment with fa3gen and its tools; the CUDA compiler comes along if none is on PATH.
# Without a network, the Python at hand serves if it has torch: its packages are seen from the new environment.
set -eu
venv=$1
python=${PYTHON:-python3}
extras=dev
command -v nvcc >/dev/null 2>&1 || extras=dev,nvcc
"$python" -m venv "$venv"
if ! "$venv/bin/python" -m pip install --quiet "torch==2.13.0"; then
    "$python" -c "import torch"
    "$python" -m venv --system-site-packages "$venv"
fi
"$venv/bin/python" -m pip install --quiet "setuptools>=77" || true
"$venv/bin/python" -m pip install --quiet -e ".[$extras]" ||
    "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation -e .
