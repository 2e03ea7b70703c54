#!/usr/bin/env bash
# Set up once, then the main job: ./launch/quickstart.sh [CONFIG.yaml] [section.field=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# a mistake in the options is told here in one message, before eight processes start (torchrun adds a page of its own)
python -m fedbsd_dist.main --check=8 "$@" > /dev/null

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # torchrun's own choice, which it would warn about
set -x
exec torchrun --nproc_per_node=8 -m fedbsd_dist.main "$@"
