#!/usr/bin/env bash
# Set up once, then the tests: ./launch/test.sh [pytest's arguments]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
# several files at once, for most of their time tests wait; then those that measure, with nothing beside them
python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder -m "not alone"
python -m pytest -m alone
