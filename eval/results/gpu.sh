#!/usr/bin/env bash
# Everything that needs a GPU: the kernels against the oracle, with the memory checker where there is one, and every case
# of the bench, parity first. A part of the bench a file, so that what stops one leaves the others.
# Run from the root, in an environment with the extra "parity": eval/results/gpu.sh NAME [PART ...]
# NAME is the card's, for the files eval/results/kernels/NAME-PART.json. A rehearsal without a GPU:
# `prm bench kernels --dry-run` and `prm bench kernels --compile-only`.
set -euo pipefail
card="$1"
shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(parity "peak pooling" run_sums best_proposal "walk " walk_conv2d walk_ratio \
    walk_windows walk_max_pool)
out=eval/results/kernels
mkdir -p $out
tests="parity_tests/test_kernels_peak_stimulation.py parity_tests/test_kernels_peak_backprop.py
    parity_tests/test_kernels_retrieval.py parity_tests/test_kernels_launching.py"

for part in "${parts[@]}"; do
    if [ "$part" = parity ]; then
        prm parity run --device cuda --examples 100 --networks 30 --json $out/../parity-$card.json
        # shellcheck disable=SC2086
        python -m pytest $tests --device cuda
        if command -v compute-sanitizer > /dev/null; then
            # shellcheck disable=SC2086
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 \
                python -m pytest $tests --device cuda --kernel-examples 3
        fi
    else
        name="${part// /}"
        prm bench kernels --device cuda --only "$part" --json "$out/$card-${name:-all}.json"
    fi
done
