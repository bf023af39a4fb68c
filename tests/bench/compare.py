# SPDX-License-Identifier: Apache-2.0
"""compare.py PAIRS THREADS MODEL PEER...: see compare.sh."""
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

pairs, threads, model, peers = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
build = pathlib.Path(__file__).resolve().parents[2] / "build"
inside = os.environ.get("PEER_MODEL", model)


def ours(environment):
    out = subprocess.run([build / "dsctl", "bench", model, "--json", "-p", "512", "-n", "128", "-r", "1"],
                         env=environment, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in out.splitlines()]
    return {row["test"]: row["tokens_per_second"] for row in rows}


def theirs(peer):
    out = subprocess.run(shlex.split(peer) + ["-m", inside, "-t", threads, "-p", "512", "-n", "128", "-r", "1"],
                         check=True, capture_output=True, text=True).stdout
    if out.lstrip().startswith("["):  # -o json of older programs: one array
        rows = json.loads(out)
    else:
        rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {("pp%d" % r["n_prompt"]) if r["n_prompt"] else ("tg%d" % r["n_gen"]): r["avg_ts"] for r in rows}


with tempfile.TemporaryDirectory() as work:
    environment = dict(os.environ, DSD_SOCKET=work + "/dsd.sock")
    config = pathlib.Path(work, "dsd.conf")
    config.write_text("")
    daemon = subprocess.Popen([build / "dsd", "--socket", work + "/dsd.sock", "--models", work, "--config", config,
                               "--log-level", "warning"])
    try:
        while subprocess.run([build / "dsctl", "status"], env=environment, capture_output=True).returncode:
            time.sleep(0.05)
        ours(environment)  # warm: the model is resident, the peer's file is in the page cache
        for peer in peers:
            theirs(peer)
            mine, other = [], []
            for _ in range(pairs):
                mine.append(ours(environment))
                other.append(theirs(peer))
            for test in sorted(other[0]):
                ratios = [m[test] / o[test] for m, o in zip(mine, other)]
                print("%-6s dsd %8.1f  peer %8.1f tokens/s  ratio %.2f (median of %d pairs, %.2f..%.2f)  [%s]" % (
                    test, statistics.median(m[test] for m in mine), statistics.median(o[test] for o in other),
                    statistics.median(ratios), pairs, min(ratios), max(ratios), peer), flush=True)
    finally:
        daemon.terminate()
        daemon.wait()
