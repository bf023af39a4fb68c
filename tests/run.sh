#!/bin/sh
# Runs tests and closes with one line: N passed, N failed, N skipped.
# usage: tests/run.sh BUILD_DIR unit|thread|all
# A test is a program: exit 0 = passed, 77 = skipped (it says why), anything else = failed.
set -u
build=$1; what=$2
cd "$(dirname "$0")/.." || exit 1
passed=0; failed=0; skipped=0; failures=''

run() {
    name=$1; shift
    log="$build/tests/$(echo "$name" | tr '/ ' '__').log"
    mkdir -p "$build/tests"
    timeout 1200 "$@" >"$log" 2>&1
    code=$?
    case $code in
        0) passed=$((passed + 1)); printf '  %-6s %s\n' ok "$name"; grep -iE '^(skip|note):' "$log" | sed 's/^/         /' ;;
        77) skipped=$((skipped + 1)); printf '  %-6s %s: %s\n' skip "$name" "$(tail -n 1 "$log")" ;;
        *) failed=$((failed + 1)); failures="$failures $name"
           printf '  %-6s %s (exit %s; %s)\n' FAIL "$name" $code "$log"; tail -n 40 "$log" | sed 's/^/         /' ;;
    esac
}

case $what in
    thread) list=$(ls tests/test_*.c | grep -E 'test_(ring|channel|pool|scheduler|worker|engine)') ;;
    *) list=$(ls tests/test_*.c) ;;
esac
for source in $list; do
    name=$(basename "$source" .c)
    run "$name" "$build/tests/$name"
done
if [ "$what" = all ]; then
    for script in tests/e2e/*.sh tests/e2e/*.py; do
        [ -f "$script" ] && run "$(basename "$script")" "$script" "$build"
    done
    [ -x tests/fuzz/run.sh ] && run fuzz tests/fuzz/run.sh check
    run lint tests/lint.sh
fi
[ -z "$failures" ] || echo "failed:$failures"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
