#!/usr/bin/env bash
# Everything that needs a GPU: the fast path and the kernels against the oracle, with the memory checker where there is
# one, and every case of the bench, parity first. What goes wrong in a part leaves the others, and is named at the end.
# Run from the root, in an environment with the extra "parity": eval/results/gpu.sh NAME [PART ...]
# NAME is the card's, for the files eval/results/kernels/NAME-PART.json. A rehearsal without a GPU:
# `prm bench kernels --dry-run` and `prm bench kernels --compile-only`.
set -uo pipefail
card="$1"
shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(parity tests memcheck "peak pooling" run_sums best_proposal "walk " walk_conv2d \
    walk_ratio walk_windows walk_max_pool)
out=eval/results/kernels
mkdir -p $out
tests=(parity_tests/test_kernels_{peak_stimulation,peak_backprop,retrieval,launching}.py --device cuda)

failed=
for part in "${parts[@]}"; do
    name="${part// /}"
    case "$name" in
    parity) prm parity run --device cuda --examples 100 --networks 30 --json "eval/results/parity-$card.json" ;;
    tests) python -m pytest "${tests[@]}" ;;
    memcheck)
        if command -v compute-sanitizer > /dev/null; then
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 \
                python -m pytest "${tests[@]}" --kernel-examples 3
        else
            echo "no compute-sanitizer: the memory checker was not run"
        fi
        ;;
    *) prm bench kernels --device cuda --only "$part" --json "$out/$card-$name.json" ;;
    esac || failed="$failed $name"
done
[ -z "$failed" ] || { echo "went wrong:$failed" >&2; exit 1; }
