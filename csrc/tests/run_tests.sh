#!/bin/sh
# Runs test programs, each under a time limit, and prints one line for all at the end.
#
# A program exits 0 when its tests passed, and 77 when it cannot run here, after it
# said why. Anything else, also a sanitizer's report or a hang, is a failure.

export ASAN_OPTIONS="detect_stack_use_after_return=1:strict_string_checks=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"

# libasan up to GCC 13 dies at random where the kernel randomizes 32 bits of an address.
if setarch -R true 2>/dev/null; then
    FIXED_ADDRESSES="setarch -R"
fi

# On an idle machine the longest takes far less; tests/run_all.py tells how slow this one is.
LIMIT_S=$(awk -v slowness="${URING_TRIO_SLOWNESS:-1}" \
    'BEGIN { limit = int(50 * slowness); print limit < 100 ? limit : 100 }')
passed=0 failed=0 skipped=0
said=$(mktemp) || exit 1
trap 'rm -f "$said"' EXIT

for program in "$@"; do
    printf '%s: ' "$(basename "$(dirname "$program")")"
    timeout -k 5 "$LIMIT_S" ${FIXED_ADDRESSES:-} "$program" ${CHECK_ARGS:-} >"$said" 2>&1
    status=$?
    counts=$(sed -n 's/^test_.*: \([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$said" | tail -n 1)
    cat "$said"
    case $status in
    77)
        skipped=$((skipped + 1))
        continue
        ;;
    esac
    passed=$((passed + ${counts% *} + 0))
    failed=$((failed + ${counts#* } + 0))
    if [ "$status" -ne 0 ] && [ "${counts#* }" = 0 -o -z "$counts" ]; then
        echo "FAILED $program: exit status $status"
        failed=$((failed + 1))
    fi
done

echo "C tests: $passed passed, $failed failed, $skipped programs skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
