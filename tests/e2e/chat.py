#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: `dsctl chat` on a terminal: Ctrl-C ends the answer or the line but never the program, lines are
# edited and remembered, the history is its owner's alone.
# Method: a pseudo-terminal against tests/e2e/fake_dsd, which has only so many tokens to give: the second
# answer stands still until Ctrl-C.
import os
import pathlib
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import time

build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
try:
    os.close(os.openpty()[0])
except OSError as error:
    print("skip: no pseudo-terminal here (%s): chat is not tried" % error)
    sys.exit(77)
work = pathlib.Path(tempfile.mkdtemp(prefix="dsd-chat."))
seen = ""


def expect(pattern, what):
    """Reads until pattern; what came is forgotten up to its end."""
    global seen
    deadline = time.monotonic() + 30
    while not (found := re.search(pattern, seen)):
        assert time.monotonic() < deadline, "%s: no %r in %r" % (what, pattern, seen)
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
    seen = seen[found.end():]


try:
    fake = subprocess.Popen([build / "tests/e2e/fake_dsd", work / "s", "credits=3"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    fake.stdout.readline()
    environment = dict(os.environ, DSD_SOCKET=str(work / "s"), XDG_STATE_HOME=str(work / "state"), TERM="xterm")
    child, terminal = pty.fork()
    if child == 0:
        os.execve(build / "dsctl", ["dsctl", "chat", "m", "-n", "2", "--seed", "1"], environment)
    expect("> ", "the prompt")
    os.write(terminal, b"first\n")
    expect(r"\d+ \d+ \.", "an answer of two tokens")
    expect("> ", "the prompt after it")
    os.write(terminal, b"half a li\x03")
    expect(r"\n> ", "a new line after Ctrl-C")
    os.write(terminal, b"second\n")
    expect(r"\d+ ", "the begin of the second answer")
    os.write(terminal, b"\x03")
    expect("> ", "the prompt after an interrupted answer")
    os.write(terminal, b"\x1b[A")
    expect("second", "the line before, by the arrow key")
    os.write(terminal, b"\x15/quit\n")
    assert os.waitpid(child, 0)[1] == 0, "chat did not end well"
    history = work / "state/dsd/chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600, oct(history.stat().st_mode)
    lines = history.read_text()
    assert "first" in lines and "second" in lines and "half" not in lines, lines
    fake.stdin.close()
    fake.wait(timeout=30)
finally:
    shutil.rmtree(work, ignore_errors=True)
