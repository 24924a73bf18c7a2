#!/bin/sh
# The tests, in the demo's environment: sh launch/test.sh [--full] [pytest arguments]
# Clips, assets and the peers' numbers are looked for in T3D_CLIPS, T3D_ASSETS and T3D_GOLDEN.
# T3D_TEST_WORKERS: how many files are tested at once (2; 0: in one process).
set -eu
cd "$(dirname "$0")/.."
. launch/environment.sh
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/jax}"
# As t3d does: what one worker has compiled serves the other, and the processes that tests start.
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
# Programs that run for a moment: compiled soon rather than well.
export XLA_FLAGS="--xla_backend_optimization_level=0 ${XLA_FLAGS:-}"
exec python -m pytest -n "${T3D_TEST_WORKERS:-2}" --dist loadfile "$@"
