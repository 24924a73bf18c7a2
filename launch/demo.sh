#!/bin/sh
# From a fresh clone to a talking head, with no download but the Python packages:
#     sh launch/demo.sh [--out DIR]
set -eu
cd "$(dirname "$0")/.."
. launch/environment.sh
exec t3d demo "$@"
