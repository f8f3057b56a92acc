#!/usr/bin/env bash
# A study under Slurm: one Ray on all nodes of the job, which ends with it. cluster/README.md explains each step.
#
#   up and submit  sbatch cluster/slurm.sh --space subspaces        on a login node, in the project's folder
#   again          the same command, after the time limit: a study that OUT holds goes on. Requeued jobs do so too
#   down           scancel JOB                                      nothing that was finished is lost
#
# Costs: what your site charges for nodes x time; nothing is started beside the job.
#
# Edit: the #SBATCH lines (account, partition, nodes, GPUs, time) and OUT. Check with: python cluster/doctor.py
# cluster/slurm.sh
#
# Before the first time: bash cluster/setup.sh, once, on a login node: home folders are shared between nodes. Where nodes
# have no network, the data set is downloaded there, too, by the python of ~/mmjsd-venv/bin:
#   python study/run.py --space subspaces --dry-run --address auto      shows which, as data.name
#   python -c 'from mmjsd.data import load; load("mnist-svhn-text")'    downloads and prepares it
#
#SBATCH --job-name=mmjsd-study
#SBATCH --account=REPLACE-WITH-YOUR-ACCOUNT
#SBATCH --partition=REPLACE-WITH-A-PARTITION
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=48G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
set -euo pipefail

OUT=${OUT:-$PWD/runs/subspaces} # a folder that every node sees
source "${MMJSD_VENV:-$HOME/mmjsd-venv}/bin/activate"

# The token of this job's Ray, in a file that its owner alone can read: other users' jobs may share the network.
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/slurm-$SLURM_JOB_ID.token
mkdir -p "$HOME/.ray"
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"

# Ports and a folder of the job's own, since another Ray may run on the same nodes.
port=$((20000 + SLURM_JOB_ID % 4000 * 3)) # and the two that follow
temporary=/tmp/ray-$SLURM_JOB_ID
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since Slurm 22.05 srun does not take it from the job
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
resources=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --temp-dir="$temporary" --block)

end() {
  kill $(jobs -p) 2>/dev/null || true # every srun below, and with them every Ray of the job
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap end EXIT

srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" --overlap \
  ray start --head --node-ip-address="$head" --port="$port" --dashboard-host=127.0.0.1 \
  --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) "${resources[@]}" &
started=($!)
lives() {
  for each in "${started[@]}"; do
    kill -0 "$each" || { echo "error: Ray has ended before the study began; see above" >&2 && exit 1; }
  done
}
until python -c 'import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)' \
  "$head" "$port" 2>/dev/null; do lives && sleep 1; done
if ((${#nodes[@]} > 1)); then
  for node in "${nodes[@]:1}"; do # apart, so that one which ends leaves the others
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap ray start --address="$head:$port" "${resources[@]}" &
    started+=($!)
  done
  until python - "$head:$port" ${#nodes[@]} <<'END'; do lives && sleep 2; done
import sys
import ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))
END
fi

if [ -f "$OUT/study.json" ]; then set -- "$@" --resume; fi
python study/run.py --address "$head:$port" --out "$OUT" "$@"
