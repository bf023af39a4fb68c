#!/bin/sh
# Runs dsctl bench and a peer's own bench program alternately on the same file, and prints the ratios of
# paired runs (median). usage: tests/bench/compare.sh [-n PAIRS] [-t THREADS] MODEL.gguf PEER...
# A PEER is a command that prints llama-bench's JSON, as "llama-bench -o jsonl" (or -o json); it is given -m FILE,
# -t THREADS, -p 512, -n 128, -r 1. Where the peer lives in a chroot, pass "chroot DIR llama-bench -o jsonl"
# and PEER_MODEL=path inside it.
set -eu
pairs=5; threads=$(nproc)
while getopts n:t: option; do
    case $option in n) pairs=$OPTARG ;; t) threads=$OPTARG ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
model=$1; shift
here=$(cd "$(dirname "$0")" && pwd)
exec python3 "$here/compare.py" "$pairs" "$threads" "$model" "$@"
