#!/usr/bin/env bash
# Makes the environment on Snellius, once, on a login node; again after an update of flowkit it changes only what is new.
#
#   bash envs/snellius.sh
#
# MODULES names other modules, for instance MODULES="2025 Python/3.13.1-GCCcore-14.2.0".
set -euo pipefail
cd "$(dirname "$0")/.."
MODULES=${MODULES:-2024 Python/3.12.3-GCCcore-13.3.0}

if [ -n "${SLURM_JOB_ID:-}" ]; then
  echo "this is a job: compute nodes have no internet, run envs/snellius.sh on a login node" >&2
  exit 1
fi
if ! type module >/dev/null 2>&1; then
  echo "there is no command 'module' here: run envs/snellius.sh on a login node of Snellius, in a login shell" >&2
  exit 1
fi
module purge
# shellcheck disable=SC2086
module load $MODULES

make environment

data=/scratch-shared/${USER:?}/flowkit
if [ -d /scratch-shared ]; then
  mkdir -p "$data"
  chmod 700 "$data"
fi

activate=.venv/activate-flowkit
{
  echo "module purge"
  echo "module load $MODULES"
  echo ". '$PWD/.venv/bin/activate'"
} >"$activate"

.venv/bin/python -m flowkit check workflow/config/demo.yaml --profile profiles/snellius
echo
echo "ready. In every new shell:   cd '$PWD' && . $activate"
echo "to bill a project:           export SBATCH_ACCOUNT=NAME   (budgets: accinfo, or accuse)"
