#!/bin/bash
#SBATCH --job-name=induction-gates
#SBATCH --time=00:30:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --output=%x-%j.log
#
# Gate a training run as soon as its job has ended well, and let the next job wait for the gates:
#
#   train=$(sbatch --parsable train.sh)
#   gates=$(sbatch --parsable --dependency=afterok:$train slurm.sh /path/to/run)
#   sbatch --dependency=afterok:$gates publish.sh
#
# The run is what an InductionRecorder wrote, a log, or a directory of checkpoints. Further arguments go to pytest
# unchanged (such as --induction-factory=model.py:make). The reports go into RUN-gates, beside the run. The job ends as pytest
# does: 0 if every gate passed, 1 if one failed.
set -euo pipefail

run=$(realpath -- "${1:?name the run: sbatch slurm.sh /path/to/run [options of pytest]}")
out="$run-gates"
mkdir -p -- "$out"

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
export HF_HUB_OFFLINE=1 # compute nodes seldom have a network, and a job that waits for one shows no sign of it

# The files have names of this job until they are complete, so that an older report is never mistaken for the new one.
mark="${SLURM_JOB_ID:-local}"
status=0
python -m pytest --induction-run="$run" -o cache_dir="$out/.pytest_cache" \
    --induction-report="$out/$mark.html" --induction-report="$out/$mark.json" --junitxml="$out/$mark.xml" \
    "${@:2}" || status=$?

for kind in html json xml; do
    if [ -e "$out/$mark.$kind" ]; then
        mv -- "$out/$mark.$kind" "$out/gates.$kind"
    fi
done
echo "gates of $run ended with $status; reports are in $out"
exit "$status"
