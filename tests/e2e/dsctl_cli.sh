#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Goal: dsctl's exit codes, its one-line errors and its JSON are what dsctl(1) promises.
# Method: no daemon at all, then a fake one (tests/e2e/fake_dsd.c) whose answers are known, cut in
# mid-answer, refusing, draining.
# usage: dsctl_cli.sh BUILD_DIR
set -u
build=$(cd "${1:-build}" && pwd) || exit 1
work=$(mktemp -d /tmp/dsd-cli-XXXXXX) || exit 1
fake=''
failed=0
unset XDG_RUNTIME_DIR
export DSD_SOCKET="$work/none"

end_fake() { [ -z "$fake" ] || { exec 9>&-; wait "$fake"; fake=''; }; }
trap 'end_fake; rm -rf "$work"' EXIT

# begin_fake KEY=VALUE...: a fake dsd that lives as long as descriptor 9
begin_fake() {
    end_fake
    rm -f "$work/in" "$work/ready"
    mkfifo "$work/in"
    "$build/tests/e2e/fake_dsd" "$work/s" "$@" <"$work/in" >"$work/ready" &
    fake=$!
    exec 9>"$work/in"
    while ! grep -q ready "$work/ready"; do sleep 0.02; done # polling for a state
    export DSD_SOCKET="$work/s"
}

# expect CODE ARGUMENTS...: runs dsctl, keeps out and err
expect() {
    code=$1; shift
    timeout 60 "$build/dsctl" "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    [ $got = "$code" ] || fail "dsctl $*: exit $got, not $code: $(cat "$work/err")"
}
fail() { echo "FAIL: $1"; failed=1; }
says() { grep -qF -- "$1" "$work/err" || fail "stderr does not say '$1': $(cat "$work/err")"; }
prints() { grep -qF -- "$1" "$work/out" || fail "stdout has no '$1': $(cat "$work/out")"; }
one_line() { [ "$(wc -l <"$work/err")" = 1 ] || fail "not one line: $(cat "$work/err")"; }

# --- without a daemon
expect 2;                             expect 2 nonsense; says "no verb 'nonsense'"
expect 0 help; prints 'usage: dsctl'; expect 0 --version; prints 'dsctl '
expect 2 help nonsense;               expect 2 --nonsense
for verb in run chat load unload pin unpin ps list show tokenize detokenize template score status \
    requests cancel ping bench; do
    expect 0 help $verb; prints "usage: dsctl $verb"; prints '--json'
    expect 0 $verb --help; prints "usage: dsctl $verb"
    expect 2 $verb --nonsense; one_line; says "'--nonsense' is no option of $verb"; says "dsctl help $verb"
done
expect 2 run; expect 2 load; expect 2 load a b; expect 2 ps x; expect 2 cancel; expect 2 cancel x
expect 2 run m -n many hi;     says '-n is a whole number'
expect 2 run m -n;             one_line; says '-n takes a value'
expect 2 run m hi --temp;      one_line; says '--temp takes a value'
expect 2 run m --raw=x hi;     one_line; says '--raw=x takes no value'
expect 2 run m -Z hi;          one_line; says "'-Z' is no option of run"
expect 2 run m --temp warm hi; says '--temp is a number'
expect 2 run m --think loud hi
expect 2 run m --stop '' hi
expect 2 run m --logprobs 21 hi
expect 2 run m --tokens '1 two'; says "'two' is none"
expect 2 run m --tokens '1' --raw
expect 2 run m --raw --system s hi
expect 2 bench m -r 0
for verb in 'run m hi' 'load m' ps list status requests 'cancel 1' 'ping -n 1' 'bench m' 'show m' \
    'tokenize m hi' 'detokenize m 1' 'score m'; do
    # shellcheck disable=SC2086 # the words are meant to be split
    expect 69 $verb; one_line; says "$work/none"
done
expect 69 --socket /no/such/socket ps; says /no/such/socket
printf '[{"role":"user","content":"hi"}]' >"$work/chat.json"
expect 69 template m --messages "$work/chat.json"
printf 'no json' >"$work/bad.json"
expect 1 template m --messages "$work/bad.json"; one_line; says "$work/bad.json"
expect 1 template m --messages "$work/not-there.json"; says 'No such file'

# --- with one
begin_fake
expect 0 run m --json -n 5 --seed 7 hi
[ "$(wc -l <"$work/out")" = 7 ] || fail "not 5 tokens, a rest and an end: $(cat "$work/out")"
prints '"event":"final","reason":"length","usage":{"prompt_tokens":7,"cached_tokens":0,"completion_tokens":5,"drafted_tokens":0,"accepted_tokens":0},"timing":{"queue_ms":'
expect 0 run m -n 5 --seed 7 hi; cp "$work/out" "$work/plain"
expect 0 run m -n 5 --seed 7 --tokens '1 2 3'; cmp -s "$work/out" "$work/plain" || fail 'same seed, other text'
expect 0 run m -n 5 --seed 7 --logprobs 1 hi; prints '-1.5000'
expect 1 run missing hi; one_line; says 'no such model'
expect 1 run missing --json hi; prints '"code":"NOT_FOUND"'
expect 0 tokenize m --json AB; [ "$(cat "$work/out")" = '{"ids":[65,66]}' ] || fail "tokenize: $(cat "$work/out")"
expect 0 tokenize m AB; [ "$(cat "$work/out")" = '65 66' ] || fail "tokenize: $(cat "$work/out")"
expect 0 ping -n 50 --json; prints '{"mode":"spin","n":50,"p50_ns":'
expect 0 ping -n 50 --block --json; prints '{"mode":"block","n":50,"p50_ns":'
expect 0 unload m; expect 0 load m
printf 'GGUF' >"$work/x-00001-of-00002.gguf"; printf 'more' >"$work/x-00002-of-00002.gguf"
expect 0 tokenize "$work/x-00001-of-00002.gguf" --json x
[ "$(cat "$work/out")" = '{"ids":[2,4]}' ] || fail "both splits of four bytes: $(cat "$work/out")"
rm "$work/x-00002-of-00002.gguf"
expect 1 tokenize "$work/x-00001-of-00002.gguf" x; one_line; says x-00002-of-00002.gguf
expect 1 run "$work/not-there.gguf" hi; one_line; says not-there.gguf
expect 1 run "$work/" hi; one_line; says 'a folder without a config.json'
expect 1 run /dev/null hi; one_line; says 'no regular file'
printf 'hello' | timeout 60 "$build/dsctl" run m -n 5 --seed 7 >"$work/out"
cmp -s "$work/out" "$work/plain" || fail 'the prompt from stdin'
printf 'one\n\n/clear\ntwo\n/quit\nthree\n' | timeout 60 "$build/dsctl" chat m -n 5 --seed 7 >"$work/out"
[ "$(cat "$work/out")" = "$(cat "$work/plain" "$work/plain")" ] || fail "chat: $(cat "$work/out")"

# output that nobody takes is an error, and a closed standard output is not the connection
timeout 60 "$build/dsctl" run m -n 5 --seed 7 hi >/dev/full 2>"$work/err"; got=$?
[ $got = 1 ] || fail "a full disk: exit $got"
says 'the output cannot be written'
timeout 60 "$build/dsctl" run m -n 5 --seed 7 hi 2>"$work/err" >&-; got=$?
[ $got = 1 ] || fail "a closed standard output: exit $got"

# an answer that nobody finishes: the first Ctrl-C ends it, what came stays
begin_fake credits=3
"$build/dsctl" run m --json -n 100 --seed 7 hi >"$work/out" 2>"$work/err" &
pid=$!
while [ "$(wc -l <"$work/out")" -lt 3 ]; do sleep 0.02; done
kill -INT $pid; wait $pid; got=$?
[ $got = 130 ] || fail "interrupted: exit $got"
prints '"reason":"cancelled"'

begin_fake drop_after=4 down_msec=200
expect 0 run m -n 5 --seed 7 hi
cmp -s "$work/out" "$work/plain" || fail "a daemon that dies in mid-answer: $(cat "$work/out")"
begin_fake reject=4; expect 75 ps; one_line; says 'refused by the test' # BUSY
begin_fake reject=3; expect 1 ps; one_line                              # PERMISSION
exit $failed
