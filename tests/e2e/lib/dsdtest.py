# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests share: a private daemon, dsctl, skipping, golden data."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
DSCTL = str(BUILD / "dsctl")
MODEL = "SmolLM2-135M-Instruct.Q4_1"
TIMEOUT = 300  # seconds before any single command counts as hung


def models_directory():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("DSD_MODELS") or os.path.join(cache, "dsd/models"))


def golden():
    root = pathlib.Path(__file__).resolve().parents[3]
    path = pathlib.Path(os.environ.get("DSD_GOLDEN") or root / "../shared/golden")
    return path if path.is_dir() else None


def skip(reason):
    print("skip: " + reason)
    sys.exit(77)


def need_model():
    if not (models_directory() / (MODEL + ".gguf")).exists():
        skip("the default model is not in %s: run `make model`" % models_directory())


class Daemon:
    """A private dsd on a socket of its own, ended and cleaned up by leaving the `with`."""

    def __init__(self, *options, models=None, config="", check=True):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="dsd-test."))
        self.socket = str(self.work / "dsd.sock")
        self.models = str(models or models_directory())
        self.config = self.work / "dsd.conf"
        self.config.write_text(config)
        self.options = list(options)
        self.check = check  # the daemon must end cleanly
        self.log = open(self.work / "log", "w+")
        self.process = None

    def start(self):
        command = [str(BUILD / "dsd"), "--socket", self.socket, "--models", self.models,
                   "--config", str(self.config), *self.options]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 20
        while self.ctl("status", check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("dsd did not come up:\n" + self.messages())
            time.sleep(0.02)  # polling for a state, not synchronising with one
        return self

    def messages(self):
        return (self.work / "log").read_text(errors="replace")[-4000:]

    def environment(self):
        return dict(os.environ, DSD_SOCKET=self.socket)

    def ctl(self, *args, check=True, input=None):
        result = subprocess.run([DSCTL, *args], env=self.environment(), input=input,
                                capture_output=True, text=not isinstance(input, bytes), timeout=TIMEOUT)
        if check and result.returncode != 0:
            raise AssertionError("dsctl %s: exit %d: %s\n%s" % (
                " ".join(args)[:200], result.returncode, result.stderr, self.messages()))
        return result

    def json(self, *args, **more):
        return [json.loads(line) for line in self.ctl(*args, "--json", **more).stdout.splitlines()]

    def popen(self, *args):
        return subprocess.Popen([DSCTL, *args], env=self.environment(), stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def engines(self):
        return [e["pid"] for e in self.json("status")[0]["engines"]]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        if self.check:
            assert code == 0, "dsd ended with %d:\n%s" % (code, self.messages())

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, value, trace):
        try:
            if self.process.poll() is None:
                self.stop()
            elif self.check and kind is None:
                raise AssertionError("dsd died during the test:\n" + self.messages())
            if kind is not None:
                print("--- dsd's log:\n" + self.messages(), file=sys.stderr)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.log.close()
            shutil.rmtree(self.work, ignore_errors=True)


def answer(events):
    """ids, text and final event of one `run --json`."""
    ids = [i for e in events for i in e.get("ids", [])]
    text = "".join(e.get("text", "") for e in events)
    final = events[-1]
    assert final["event"] == "final", events[-1]
    return ids, text, final


def first_line(process):
    """One line and no byte more: communicate() passes by what readline() has read ahead."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(process.stdout.fileno(), 1)
        if not byte:
            break
        line += byte
    return line.decode()


def finish(process, begun="", timeout=TIMEOUT):
    """The answer of a `run --json`; begun: what was read of its output already."""
    out, err = process.communicate(timeout=timeout)
    out = begun + out
    assert process.returncode == 0, "exit %d: %s %s" % (process.returncode, err, out[-500:])
    return answer([json.loads(line) for line in out.splitlines()])


PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three colours.",
    "Explain what a shared-memory ring buffer is to a programmer who knows sockets.",
    "Give me a short recipe for pancakes.",
    "Who wrote Hamlet?",
    "Translate 'good morning' into Spanish, French and German, and say which is the oldest language.",
    "Count from one to ten in English words.",
    "List the planets of the solar system from the innermost to the outermost one.",
    "Why is the sky blue? Answer for a child of six years. " * 8,
    "Summarise: " + "the quick brown fox jumps over the lazy dog, and " * 30,
    "A",
    "Tell me a story about a lighthouse keeper and his dog.",
    "What is 17 times 23?",
    "Write a haiku about the first snow.",
    "Say nothing but the word yes.",
]
