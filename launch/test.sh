#!/bin/sh
# The tests, in the demo's environment: sh launch/test.sh [--full] [pytest arguments]
# Clips, assets and the peers' numbers are looked for in T3D_CLIPS, T3D_ASSETS and T3D_GOLDEN.
set -eu
cd "$(dirname "$0")/.."
. launch/environment.sh
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/jax}"
exec python -m pytest "$@"
