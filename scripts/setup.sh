#!/bin/sh
# Make a virtual environment with fa3gen and its tools; the CUDA compiler comes along if none is on
# PATH. Without a package index the Python at hand serves, if it has torch and what fa3gen imports.
set -eu
venv=$1
python=${PYTHON:-python3}
extras=dev
command -v nvcc >/dev/null 2>&1 || extras=dev,nvcc
rm -rf "$venv"
"$python" -m venv "$venv"
if "$venv/bin/python" -m pip install --quiet --retries 1 "torch==2.13.0" "setuptools>=77"; then
    "$venv/bin/python" -m pip install --quiet -e ".[$extras]"
    exit
fi
echo "no package index: using $(command -v "$python")" >&2
"$python" -c "import filelock, jinja2, networkx, ninja, platformdirs, pydantic, sympy, torch, yaml"
rm -rf "$venv"
mkdir -p "$venv/bin"
printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" "$@"\n' "$PWD" "$(command -v "$python")" >"$venv/bin/python"
chmod +x "$venv/bin/python"
