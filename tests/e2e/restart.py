#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: restarting dsd as an administrator does (SIGTERM, start again) costs a stream a pause, nothing else.
# Method: streams run while dsd is told to stop, with so little time to drain that they cannot end; the
# next dsd gets the same socket. Every stream must equal its undisturbed self.
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from dsdtest import MODEL, PROMPTS, Daemon, finish, first_line, need_model

need_model()


def arguments(number):
    return ["run", MODEL, "--json", "--seed", str(number), "--ignore-eos", "-n", "300", PROMPTS[number]]


with Daemon(config="[dsd]\ndrain_sec = 1\n") as dsd:
    expected = [finish(dsd.popen(*arguments(n)))[:2] for n in range(2)]
    streams = [dsd.popen(*arguments(n)) for n in range(2)]
    begun = [first_line(s) for s in streams]
    dsd.stop()
    assert all(s.poll() is None for s in streams), "a stream had ended before dsd did: nothing was resumed"
    dsd.start()
    for number, stream in enumerate(streams):
        assert finish(stream, begun[number])[:2] == expected[number], "stream %d differs" % number
print("note: dsd restarted under 2 streams: nothing lost")
