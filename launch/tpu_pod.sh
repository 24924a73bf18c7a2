#!/bin/bash
# t3d train on all hosts of a Cloud TPU slice, from a machine that has gcloud and stays on:
#     bash launch/tpu_pod.sh create
#     bash launch/tpu_pod.sh train --data /mnt/t3d/DATASET --workdir /mnt/t3d/RUN [--config NAME] …
#     bash launch/tpu_pod.sh delete
# `create` makes the slice and installs the last commit of this folder there (`install`: another
# commit); `train` takes the arguments of `t3d train`, starts it again when it was stopped, and makes
# a slice that was taken away anew; when that was interrupted, `stop` ends t3d on the hosts. T3D_DRY_RUN=1 bash launch/tpu_pod.sh … prints the commands.
set -eu
cd "$(dirname "$0")/.."

# Change these; SHARE is an NFS export (Filestore) that the slice reaches.
NAME=${NAME:-t3d}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
SHARE=${SHARE:-10.0.0.2:/t3d}
OPTIONS=${OPTIONS---spot}               # for queued-resources create: --spot, --reserved or nothing
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} # the TPU software version that goes with TYPE
RESTARTS=20                             # after a lost host or a crash; being stopped is not counted

tpu=(gcloud --quiet compute tpus)

run() {
    if [ -n "${T3D_DRY_RUN:-}" ]; then
        printf '%q ' "$@" && echo
    else
        "$@"
    fi
}

# Runs a shell command on every host; ends with the first host's code that is not 0.
on_all_hosts() {
    run "${tpu[@]}" tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

state() {
    "${tpu[@]}" queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)'
}

wait_until_active() {
    [ -z "${T3D_DRY_RUN:-}" ] || return 0
    while now=$(state); [ "$now" != ACTIVE ]; do
        case $now in
        "" | FAILED | SUSPENDED)
            echo "$NAME is not to be had (${now:-unknown}): delete it, then create it again" >&2
            exit 1
            ;;
        esac
        sleep 30
    done
}

create() {
    # shellcheck disable=SC2086 # OPTIONS is a list of words
    run "${tpu[@]}" queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" $OPTIONS
    wait_until_active
    install
}

install() {
    run mkdir -p build
    run git archive --format=tar.gz --output=build/t3d.tar.gz HEAD
    run "${tpu[@]}" tpu-vm scp build/t3d.tar.gz "$NAME:" --zone="$ZONE" --worker=all
    on_all_hosts "sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y nfs-common"
    on_all_hosts "mountpoint -q /mnt/t3d || sudo mount --mkdir -t nfs $SHARE /mnt/t3d"
    on_all_hosts "mkdir -p t3d && tar -xzf t3d.tar.gz -C t3d && python3 -m pip install -q uv"
    on_all_hosts "cd t3d && python3 -m uv venv -q --allow-existing --python 3.11 .venv"
    on_all_hosts "cd t3d && python3 -m uv pip install -q -c constraints.txt -e '.[tpu]'"
}

delete() {
    run "${tpu[@]}" queued-resources delete "$NAME" --zone="$ZONE" --force
}

train() {
    arguments=$(printf '%q ' "$@")
    failures=0
    while true; do
        code=0
        on_all_hosts "cd t3d && exec .venv/bin/t3d train --distributed $arguments" || code=$?
        [ "$code" -eq 143 ] || failures=$((failures + 1))
        if [ "$code" -eq 0 ] || [ "$code" -eq 2 ] || [ "$failures" -gt "$RESTARTS" ]; then
            return "$code" # 2: something that its user must mend first
        fi
        echo "t3d ended with $code: it is started again" >&2
        if [ "$(state)" != ACTIVE ]; then
            delete
            create
        fi
    done
}

stop() {
    on_all_hosts "pkill -TERM -f '[b]in/t3d train'"
}

case ${1:-} in
create | install | train | stop | delete) "$@" ;;
*)
    echo "usage: bash $0 create | install | train --data DIR --workdir DIR … | stop | delete" >&2
    exit 2
    ;;
esac
