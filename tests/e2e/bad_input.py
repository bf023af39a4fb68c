#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: bad input of every kind gets one clear line, the right exit code, and disturbs nothing.
# Method: a stream runs from beginning to end while each mistake is made beside it; each must end with
# its exit code and one line on stderr that names the thing; the stream must equal its undisturbed self.
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from dsdtest import BUILD, DSCTL, MODEL, Daemon, finish, first_line, models_directory, need_model

need_model()
work = pathlib.Path(tempfile.mkdtemp(prefix="dsd-bad."))
whole = (models_directory() / (MODEL + ".gguf")).read_bytes()
failures = []


def make(name, data):
    (work / name).write_bytes(data)
    return str(work / name)


def gguf(*pairs, tensors=b"", n_tensors=0):
    """A GGUF of string and u32 keys."""
    out = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(pairs))
    for key, value in pairs:
        out += struct.pack("<Q", len(key)) + key.encode()
        if isinstance(value, str):
            out += struct.pack("<IQ", 8, len(value)) + value.encode()
        else:
            out += struct.pack("<II", 4, value)
    return out + tensors + bytes(64)


def expect(dsd, code, words, *args, input=None):
    result = dsd.ctl(*args, check=False, input=input)
    lines = [l for l in result.stderr.splitlines() if l.strip()]
    problem = None
    if result.returncode != code:
        problem = "exit %d, not %d" % (result.returncode, code)
    elif len(lines) != 1 and code != 2:
        problem = "%d lines, not one" % len(lines)
    elif not all(w.lower() in result.stderr.lower() for w in words):
        problem = "does not name %r" % (words,)
    print("%-4s dsctl %s -> %d %s" % ("FAIL" if problem else "ok", " ".join(args)[:90], result.returncode,
                                      result.stderr.strip()[:300]))
    if problem:
        failures.append("%s: %s" % (" ".join(args)[:90], problem))


RUN = ["run", MODEL, "--json", "--temp", "0.8", "--seed", "5", "--ignore-eos", "-n", "400", "Tell me a story."]

try:
    with Daemon(config="[limits]\n") as dsd:
        expected = finish(dsd.popen(*RUN))
        stream = dsd.popen(*RUN)
        first = first_line(stream)  # it runs

        expect(dsd, 1, ["nosuchmodel"], "run", "nosuchmodel", "Hello")
        expect(dsd, 1, ["no/such/file.gguf"], "run", "/no/such/file.gguf", "Hello")
        expect(dsd, 1, ["empty", "GGUF"], "run", make("empty.gguf", b""), "Hello")
        expect(dsd, 1, ["text", "GGUF"], "run", make("text.gguf", b"this is no model\n" * 100), "Hello")
        for size in (10, 100, 4096, 100000, len(whole) // 2, len(whole) - 1):
            expect(dsd, 1, ["cut%d" % size], "run", make("cut%d.gguf" % size, whole[:size]), "Hello")
        expect(dsd, 1, ["version"], "load", make("v9.gguf", b"GGUF" + struct.pack("<IQQ", 9, 0, 0) + bytes(64)))
        expect(dsd, 1, ["mamba"], "load", make("arch.gguf", gguf(("general.architecture", "mamba"))))
        huge = b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60) + bytes(64)
        expect(dsd, 1, ["huge", "damaged"], "load", make("huge.gguf", huge))
        first_type = whole.find(b"blk.0.attn_k.weight") + len(b"blk.0.attn_k.weight") + 4 + 16
        bad_type = bytearray(whole)
        bad_type[first_type:first_type + 4] = struct.pack("<I", 97)
        expect(dsd, 1, ["type"], "load", make("type97.gguf", bytes(bad_type)))
        expect(dsd, 1, ["context"], "run", MODEL, "-n", "4", input="word " * 20000)
        expect(dsd, 1, ["temp"], "run", MODEL, "--temp", "-3", "Hello")
        expect(dsd, 1, ["top"], "run", MODEL, "--top-p", "7", "Hello")
        expect(dsd, 1, ["token"], "run", MODEL, "--tokens", "1 2 99999999", "-n", "4")
        expect(dsd, 2, ["--nosuch"], "run", MODEL, "--nosuch", "Hello")
        expect(dsd, 2, ["nosuchverb"], "nosuchverb")
        expect(dsd, 2, ["temp"], "run", MODEL, "--temp", "warm", "Hello")
        expect(dsd, 1, ["nosuchmodel"], "unload", "nosuchmodel")
        expect(dsd, 1, ["987654321"], "cancel", "987654321")
        bad_json = make("messages.json", b'[{"role": "user", ')
        expect(dsd, 1, ["messages.json"], "template", MODEL, "--messages", bad_json)

        unreadable = make("locked.gguf", whole[:4096])
        os.chmod(unreadable, 0)
        if os.geteuid() != 0:
            expect(dsd, 1, ["locked.gguf", "permission"], "run", unreadable, "Hello")
        else:
            print("skip: running as root, so no file is unreadable")

        assert finish(stream, first)[:2] == expected[:2], "the stream beside the mistakes was disturbed"
        ps = [m for row in dsd.json("ps") for m in row.get("models", [row])]
        assert len(ps) == 1, "a failed load left something behind: %r" % ps

    nobody = dict(os.environ, DSD_SOCKET=str(work / "none.sock"))
    result = subprocess.run([DSCTL, "run", MODEL, "Hello"], env=nobody, capture_output=True, text=True, timeout=60)
    print("no daemon -> %d %s" % (result.returncode, result.stderr.strip()))
    assert result.returncode == 69 and "none.sock" in result.stderr, result

    with Daemon(check=False) as dsd:
        stream = dsd.popen("run", MODEL, "--ignore-eos", "-n", "2000", "Tell me a story.")
        stream.stdout.read(1)
        dsd.process.send_signal(signal.SIGKILL)
        dsd.process.wait()
        out, err = stream.communicate(timeout=90)  # it waits 30 s for a new daemon
        print("daemon died in mid-answer -> %d %s" % (stream.returncode, err.strip()))
        assert stream.returncode == 69 and err.strip(), (stream.returncode, err)

    bad = subprocess.run([str(BUILD / "dsd"), "--check-config", "--config", make("bad.conf", b"[limits]\nnosuchkey = 1\n")],
                         capture_output=True, text=True, timeout=60)
    print("bad configuration -> %d %s" % (bad.returncode, bad.stderr.strip()))
    assert bad.returncode != 0 and "nosuchkey" in bad.stderr and "bad.conf" in bad.stderr, bad
    assert not failures, "\n".join(failures)
finally:
    shutil.rmtree(work, ignore_errors=True)
