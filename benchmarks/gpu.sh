#!/usr/bin/env bash
# Everything that a machine with one CUDA GPU must answer, into OUT/gpu.json.
#
#   benchmarks/gpu.sh OUT [MINUTES]                what is not in OUT yet, for 5 minutes at most; then again with 7
#   benchmarks/gpu.sh --rehearse OUT [MINUTES]     the same on the CPU, tiny, into OUT/rehearsal
#
# Each part has a file in OUT and is not run again while it is there. PYTHON names a Python with what `make install`
# installs and a CUDA build of torch; without it, .venv/bin/python. Nothing is fetched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
export HF_HUB_OFFLINE=1 PYTHONPATH=$here/../src${PYTHONPATH:+:$PYTHONPATH}
exec "$python" "$here/gpu_parts.py" "$@"
