#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: `dsctl verify` says what a file hashes to, remembers it, and finds every kind of harm: another
# byte, a number that is none, a fingerprint that is off.
# Method: a small file of tests/bench/synth_gguf, harmed by hand; hashlib says what the hash must be.
import hashlib
import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0] + "/lib")
from dsdtest import BUILD, Daemon  # noqa: E402

with Daemon() as dsd:
    model = dsd.work / "synth.gguf"
    state = dsd.work / "state"
    os.environ["XDG_STATE_HOME"] = str(state)
    subprocess.run([BUILD / "tests/bench/synth_gguf", "--layers", "1", "smollm2-135m", "Q8_0", model], check=True)
    whole = model.read_bytes()

    first = dsd.json("verify", str(model))[0]
    assert first["first"] and first["files"][0]["sha256"] == hashlib.sha256(whole).hexdigest(), first
    assert first["files"][0]["bytes"] == len(whole) and first["values"] > 30e6, first
    record = pathlib.Path(str(model) + ".verify")
    assert json.loads(record.read_text())["nll"] == first["nll"], record.read_text()
    again = dsd.json("verify", str(model))[0]
    assert not again["first"] and again["nll"] == first["nll"] and again["next"] == first["next"], again
    out = dsd.ctl("verify", str(model)).stdout
    assert "finite" in out and "as recorded in" in out, out

    # one byte of a quantised value: still numbers, but not the file it was
    harmed = bytearray(whole)
    harmed[-1] ^= 1
    model.write_bytes(harmed)
    bad = dsd.ctl("verify", str(model), check=False)
    assert bad.returncode == 1 and "SHA-256" in bad.stderr and bad.stderr.count("\n") == 1, bad
    assert dsd.json("verify", str(model), "--renew")[0]["first"]

    # the scale of the last Q8_0 block of the file, which ends with output_norm (576 floats)
    harmed[-576 * 4 - 34:-576 * 4 - 32] = b"\x00\x7e"
    model.write_bytes(harmed)
    bad = dsd.ctl("verify", str(model), check=False)
    assert bad.returncode == 1 and "nan" in bad.stderr and "tensor 'blk.0." in bad.stderr, bad

    # the same file computes something else
    model.write_bytes(whole)
    lie = dict(json.loads(record.read_text()), files=first["files"], nll=first["nll"] + 31)
    record.write_text(json.dumps(lie))
    bad = dsd.ctl("verify", str(model), check=False)
    assert bad.returncode == 1 and "1.000 nats" in bad.stderr, bad

    # a damaged record is as good as none
    record.write_text("{")
    assert dsd.json("verify", str(model))[0]["first"]

    # where nothing can be written beside the file
    aside = dsd.work / "aside"
    aside.mkdir()
    (aside / "m.gguf").write_bytes(whole)
    (aside / "m.gguf.verify").mkdir()
    kept = dsd.json("verify", str(aside / "m.gguf"))[0]
    assert kept["first"] and kept["record"].startswith(str(state)), kept
    assert not dsd.json("verify", str(aside / "m.gguf"))[0]["first"]
print("ok")
