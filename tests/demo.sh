#!/bin/sh
# What dsd does, in a minute: a private daemon, one streamed answer, four at once, the figures.
# usage: tests/demo.sh BUILD_DIR
set -eu
build=$(cd "$1" && pwd)
models=${DSD_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/dsd/models}
model=SmolLM2-135M-Instruct.Q4_1
work=$(mktemp -d)
daemon=''
export DSD_SOCKET=$work/dsd.sock

cleanup() {
    [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; }
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$1"; }
[ -t 1 ] || say() { printf '\n%s\n' "$1"; }
show() { say "\$ $*"; "$@"; }
PATH=$build:$PATH

say "\$ dsd --socket $DSD_SOCKET --models $models &"
dsd --socket "$DSD_SOCKET" --models "$models" --log-level warning &
daemon=$!
tries=0
until dsctl status >/dev/null 2>&1; do
    kill -0 "$daemon" 2>/dev/null || { echo "demo: dsd ended before it was ready; its messages stand above" >&2; exit 1; }
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "demo: dsd did not answer within 10 s on $DSD_SOCKET" >&2; exit 1; }
    sleep 0.1
done

show dsctl load $model
show dsctl run $model -n 80 --temp 0 'What is the capital of France, and what is it known for?'

say "Four prompts at once"
number=0
for prompt in 'Write one sentence about the sea.' 'Name three colours.' \
    'What is a shared-memory ring buffer?' 'Give me a short recipe for pancakes.'; do
    number=$((number + 1))
    dsctl run $model --json -n 64 --temp 0 "$prompt" >"$work/$number.json" &
    eval "job_$number=\$!"
done
for number in 1 2 3 4; do eval "wait \$job_$number"; done
python3 - "$work" <<'P'
import json, sys, glob
total, longest = 0, 0.0
for name in sorted(glob.glob(sys.argv[1] + "/*.json")):
    events = [json.loads(line) for line in open(name)]
    final = events[-1]
    assert final["event"] == "final", final
    text = "".join(e.get("text", "") for e in events)
    usage, timing = final["usage"], final["timing"]
    n, seconds = usage["completion_tokens"], timing["decode_ms"] / 1e3
    total += n
    longest = max(longest, (timing["ttft_ms"] + timing["decode_ms"]) / 1e3)
    print("  %-72s" % (" ".join(text.split())[:69] + "..."))
    print("    first token after %.0f ms, %d tokens at %.0f tokens/s" % (timing["ttft_ms"], n, (n - 1) / seconds if seconds else 0))
print("  together: %d tokens in %.2f s = %.0f tokens/s" % (total, longest, total / longest))
P

show dsctl ps
show dsctl ping -n 2000

say "Stopping the daemon"
kill "$daemon"
wait "$daemon" && echo "dsd ended cleanly" || { code=$?; daemon=''; echo "demo: dsd ended with $code" >&2; exit 1; }
daemon=''
