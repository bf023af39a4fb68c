#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: a crashed engine or a restarted daemon loses no token of any request.
# Method: 8 streams run undisturbed; then again while dsd-engine is killed at random moments, and while
# dsd itself is killed and started again; every stream must end byte-identical. The undisturbed run guesses no
# tokens ahead, the others do, so what guesses leave behind in a crash would show as well.
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from dsdtest import MODEL, PROMPTS, Daemon, finish, need_model

need_model()
random.seed(int(os.environ.get("DSD_TEST_SEED", "11")))
ENGINE_KILLS = int(os.environ.get("DSD_TEST_ENGINE_KILLS", "20"))
DAEMON_KILLS = int(os.environ.get("DSD_TEST_DAEMON_KILLS", "5"))
STREAMS = 8


def start(dsd, *options):
    return [dsd.popen("run", MODEL, "--json", "--ignore-eos", "-n", "64", "--temp", "0.8" if i % 2 else "0", "--seed",
                      str(i), *options, PROMPTS[i]) for i in range(STREAMS)]


def compare(streams, expected, what):
    for i, stream in enumerate(streams):
        ids, text, final = finish(stream)
        assert ids == expected[i][0], "%s: stream %d: ids differ: %r is not %r" % (what, i, ids, expected[i][0])
        assert text == expected[i][1], "%s: stream %d: text differs: %r is not %r" % (what, i, text, expected[i][1])
        assert final["usage"]["completion_tokens"] == 64, final


with Daemon() as dsd:
    dsd.ctl("load", MODEL)
    began = time.monotonic()
    expected = [finish(s) for s in start(dsd, "--no-spec")]
    undisturbed = time.monotonic() - began
    kills = 0
    while kills < ENGINE_KILLS:
        streams = start(dsd)
        for _ in range(2):  # a moment anywhere in the life of the batch: before, during, towards the end
            time.sleep(random.uniform(0, undisturbed))
            for pid in dsd.engines():
                try:
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
                except (ProcessLookupError, PermissionError):
                    pass  # it had ended, and the next one is not there yet
        compare(streams, expected, "engine kill %d" % kills)
    print("note: %d kills of dsd-engine while %d streams ran: nothing lost" % (kills, STREAMS))
    for number in range(DAEMON_KILLS):
        streams = start(dsd)
        time.sleep(random.uniform(0.05, undisturbed))
        dsd.process.send_signal(signal.SIGKILL)
        dsd.process.wait()
        dsd.start()
        compare(streams, expected, "daemon kill %d" % (number + 1))
    print("note: %d kills of dsd while %d streams ran: nothing lost" % (DAEMON_KILLS, STREAMS))
