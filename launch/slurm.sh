# Sourced by slurm.sbatch and slurm_sweep.sbatch, and by their srun on every node: one torchrun a node, and back into
# the queue when SLURM stops the job before its end.
set -uo pipefail

fail() { printf 'fedbsd_dist: %s\n' "$*" >&2; exit 2; }

option() { # the value of the last argument $1=VALUE of the others
    local name=$1 argument value=""
    shift
    for argument in "$@"; do
        case $argument in "$name="*) value=${argument#*=} ;; esac
    done
    printf '%s' "$value"
}

saved() { # what runs in the folder $1 (or it is one) have saved: where they were stopped, their ends, checkpoints
    # by listing the folder: a network file system may remember for a minute that a file was not there
    # -H: it may be a link; deepest are the manifests of checkpoints, RUN/checkpoints/round-000001/manifest.json
    find -H "$1" -maxdepth 4 '(' -name PREEMPTED -o -name summary.json -o -name manifest.json ')' -exec cksum {} + \
        2>/dev/null | sort
}

launch() { # $1: the folder of the run or sweep; the rest: options
    local folder=$1 job=$SLURM_JOB_ID asked="" woken="" code=0 before new facts step
    shift
    if [ -x .venv/bin/torchrun ]; then
        export PATH="$PWD/.venv/bin:$PATH"
    elif ! command -v torchrun > /dev/null; then
        fail "there is no .venv here, and no torchrun on PATH. Where there is internet, run: bash launch/setup.sh"
    fi
    if [ "$(option run.overwrite "$@")" = true ]; then
        fail "run.overwrite=true: a requeued job would delete what it has done. Delete $folder yourself, or choose another."
    fi
    # an array's last task has the array's own id, which in SLURM's commands means all of its tasks
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; fi

    # jobs on the same nodes have ports of their own; this shell runs on the first node, where the ranks meet
    FEDBSD_PORT=$((15000 + SLURM_JOB_ID % 10000))
    while (: > "/dev/tcp/localhost/$FEDBSD_PORT") 2> /dev/null; do FEDBSD_PORT=$((FEDBSD_PORT + 1)); done
    FEDBSD_HEAD="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
    export FEDBSD_PORT FEDBSD_HEAD OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    # longer than a round and its checkpoint, shorter than the lead of --signal
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}"

    before="$(saved "$folder")"
    trap 'woken=1; asked=1; scancel --signal=TERM "$job"' USR2 # the time limit is near
    trap 'woken=1' TERM                                         # SLURM ends the job, and tells the steps itself
    # srun takes no --cpus-per-task from sbatch
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        bash -c 'source launch/slurm.sh; node "$@"' node "$@" run.overwrite=false run.resume=auto &
    step=$!
    while woken=""; wait "$step"; code=$?; [ -n "$woken" ]; do :; done

    # torchrun fails whenever it was signalled, so what is saved decides
    new="$(comm -13 <(echo "$before") <(saved "$folder"))"
    if [ "$code" = 0 ] && [[ $new != */PREEMPTED* ]]; then exit 0; fi
    facts="$(scontrol show job "$job")"
    # in another state SLURM itself ends the job, and requeues it where that is wanted
    [[ $facts == *JobState=RUNNING* ]] || exit "$code"
    # preempted, a job that ends in its GraceTime counts for SLURM as done; at the time limit, one that saved nothing
    # would do so for ever
    if [[ $facts =~ PreemptTime=[0-9] ]] || { [ -n "$asked" ] && [ -n "$new" ]; }; then
        echo "fedbsd_dist: SLURM stops job $job, which goes back into the queue, and on from what is saved."
        scontrol requeue "$job" || fail "scontrol requeue $job failed. Submit the same command again, and it goes on."
        exit 0
    fi
    if [ -n "$asked" ]; then
        echo "fedbsd_dist: nothing was saved between the start and the signal ahead of the time limit, so job $job is" \
            "not requeued. Give it a longer --time, or shorter rounds." >&2
    fi
    exit "$code"
}

node() { # on each node
    local ranks=${RANKS_PER_NODE:-}
    if [ -z "$ranks" ]; then
        ranks="$(python -c 'import torch; print(torch.cuda.device_count())')" || exit
        if [ "$ranks" = 0 ]; then ranks=$((SLURM_CPUS_ON_NODE < 8 ? SLURM_CPUS_ON_NODE : 8)); fi
    fi
    exec torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="$ranks" --rdzv_backend=c10d \
        --rdzv_endpoint="$FEDBSD_HEAD:$FEDBSD_PORT" --rdzv_id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
        -m fedbsd_dist.main "$@"
}
