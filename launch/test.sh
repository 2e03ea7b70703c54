#!/usr/bin/env bash
# Set up once, then the tests: ./launch/test.sh [pytest's arguments]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

exec python -m pytest "$@"
