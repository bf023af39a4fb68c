#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: files of tests/bench/synth_gguf are models that dsd runs, and `dsctl bench` holds its figures
# against limits that make sense, in all three forms.
# Method: a one-layer file of each dense shape's kind; figures are checked for being there and for their
# arithmetic, never for being large.
import csv
import subprocess
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0] + "/lib")
from dsdtest import BUILD, Daemon  # noqa: E402

with Daemon(models="/nonexistent") as dsd:
    model = str(dsd.work / "synth.gguf")
    for shape, kind in (("smollm2-135m", "Q4_K_M"), ("r1-distill-qwen-1.5b", "Q8_0")):
        subprocess.run([BUILD / "tests/bench/synth_gguf", "--layers", "1", shape, kind, model], check=True)
        rows = dsd.json("bench", model, "-p", "8,16", "-n", "4", "-d", "0,32", "--streams", "1,3", "-r", "2")
        assert [(r["test"], r["depth"], r["streams"]) for r in rows] == [
            ("pp8", 0, 1), ("pp16", 0, 1), ("tg4", 0, 1), ("tg4", 32, 1), ("tg4", 0, 3)], rows
        for row in rows:
            assert row["tokens_per_second"] > 0 and row["limit"] > 0, row
            assert ("wait_ms" in row) == row["test"].startswith("pp"), row
        alone, deep, three = rows[2:]
        if alone["limited_by"] == "reading":  # more keys to read: a lower limit; shared weights: a higher one
            assert deep["limit"] < alone["limit"] < three["limit"] <= 3 * alone["limit"] * 1.01, rows
    out = dsd.ctl("bench", model, "-p", "8", "-n", "2", "-r", "1", "--csv").stdout
    parsed = list(csv.DictReader(out.splitlines()))
    assert [r["test"] for r in parsed] == ["pp8", "tg2"] and float(parsed[1]["tokens_per_second"]) > 0, out
    out = dsd.ctl("bench", model, "-p", "8", "-n", "2", "-r", "1").stdout
    assert "GB/s" in out and "of the limit" in out and out.count("%") >= 2, out
    left_out = dsd.ctl("bench", model, "-p", "900000", "-n", "0", "-r", "1")
    assert "left out" in left_out.stderr, left_out
    bad = dsd.ctl("bench", model, "-p", "8,x", check=False)
    assert bad.returncode == 2 and "-p" in bad.stderr, bad
print("ok")
