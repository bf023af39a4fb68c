#!/bin/sh
# Fuzz targets: tests/fuzz/fuzz_NAME.c, each with a line " * sources: FOLDER-OR-FILE ..." that says what it is
# made of. Built with address and undefined-behaviour sanitizers, and libFuzzer where clang has it.
# usage: tests/fuzz/run.sh           every target at once, without limit; stop with Ctrl-C
#        tests/fuzz/run.sh check     every target for FUZZ_SECONDS (default 60), as many at once as there are processors
# Without libFuzzer tests/fuzz/driver.c stands in for it.
# Inputs: seeds in tests/fuzz/corpus/NAME, what a run finds in build-fuzz/corpus/NAME. An input that breaks
# something is written to build-fuzz/NAME-crash-*.
set -eu
cd "$(dirname "$0")/../.."
seconds=0
[ "${1:-}" != check ] || seconds=${FUZZ_SECONDS:-60}
build=build-fuzz
sanitize='-fsanitize=address,undefined -fno-sanitize-recover=undefined'
flags="-std=gnu17 -O1 -g -pthread -D_GNU_SOURCE -I. -Ibuild -w"
mkdir -p $build

make -s build/engine/text/unicode_data.c build/engine/format/iq_grids.c build/proto/ds.pb-c.c
echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return !d && n; }' >$build/probe.c
if command -v clang >/dev/null && clang -fsanitize=fuzzer -o $build/probe $build/probe.c 2>/dev/null; then
    compiler='clang -fsanitize=fuzzer-no-link'; link='clang -fsanitize=fuzzer'; driver=''
    objects_in=$build/fuzzer
else
    echo "note: no clang with libFuzzer: seeds and random changes of them only"
    compiler=${CC:-cc}; link=${CC:-cc}; driver=tests/fuzz/driver.c
    objects_in=$build/plain
fi
mkdir -p "$objects_in"

# The C files of the folders and files named, without the programs among them.
files_of() {
    for source in "$@"; do
        case $source in
            *.c) echo "$source" ;;
            *) ls "$source"/*.c | grep -v -e '/main\.c$' -e '_gen\.c$'
               [ "$source" != engine/text ] || echo build/engine/text/unicode_data.c
               [ "$source" != engine/format ] || echo build/engine/format/iq_grids.c
               [ "$source" != proto ] || echo build/proto/ds.pb-c.c ;;
        esac
    done
}

compile() {
    object=$objects_in/$(echo "${1%.c}" | tr / _).o
    if [ ! "$object" -nt "$1" ] ||
        [ -n "$(find proto shm engine tests -name '*.h' -newer "$object" | head -n 1)" ]; then
        $compiler $flags $sanitize -c -o "$object" "$1"
    fi
    echo "$object"
}

build_target() {
    # shellcheck disable=SC2046
    sources=$(files_of $(sed -n 's/^ \* sources: //p' "$1"))
    objects=''
    for source in "$1" $sources $driver; do objects="$objects $(compile "$source")"; done
    # shellcheck disable=SC2086
    $link $sanitize -pthread -o "$build/$2" $objects -lcjson -ljansson -lnettle -lprotobuf-c -lm
}

status=0
running=''
running_names=''

# Waits for all that run; in check mode says what each did.
gather() {
    set -- $running_names
    for pid in $running; do
        name=$1; shift
        wait "$pid" || { status=1; [ "$seconds" = 0 ] || tail -n 40 "$build/$name.log"; }
        [ "$seconds" = 0 ] || grep -E '^(Done|#[0-9]+.*DONE)' "$build/$name.log" | tail -n 1 | sed "s/^/$name: /"
    done
    running=''; running_names=''
}

for target in tests/fuzz/fuzz_*.c; do build_target "$target" "$(basename "$target" .c)"; done
for target in tests/fuzz/fuzz_*.c; do
    name=$(basename "$target" .c)
    mkdir -p "$build/corpus/$name"
    set -- -max_total_time="$seconds" -artifact_prefix="$build/$name-" -timeout=60 -len_control=20 -rss_limit_mb=2048 \
        "$build/corpus/$name"
    if grep -q DSD_FUZZ_SEEDS "$target"; then # it makes its own seeds
        mkdir -p "$build/seeds/$name"
        DSD_FUZZ_SEEDS="$build/seeds/$name" "$build/$name"
        set -- "$@" "$build/seeds/$name"
    fi
    [ ! -d "tests/fuzz/corpus/$name" ] || set -- "$@" "tests/fuzz/corpus/$name"
    if [ "$seconds" = 0 ]; then
        "$build/$name" "$@" &
    else
        "$build/$name" "$@" >"$build/$name.log" 2>&1 &
    fi
    running="$running $!"; running_names="$running_names $name"
    # shellcheck disable=SC2086
    [ "$seconds" = 0 ] || [ "$(echo $running | wc -w)" -lt "$(nproc)" ] || gather
done
gather
exit $status
