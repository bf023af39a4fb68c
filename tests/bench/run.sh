#!/bin/sh
# Every benchmark of the repository, as ratios against a comparator or a limit measured in the same run.
# usage: tests/bench/run.sh BUILD_DIR
set -eu
build=$1
for source in tests/bench/bench_*.c; do
    name=$(basename "$source" .c)
    printf '\n== %s\n' "$name"
    "$build/tests/bench/$name" || echo "$name: exit $?"
done
