#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: an idle daemon with a resident model makes no wake-ups.
# Method: load the model, answer once, let it settle; then count the context switches of every thread of
# dsd and of its engine over two seconds. None may happen.
import glob
import os
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from dsdtest import MODEL, Daemon, need_model

need_model()


def switches(pids):
    count = {}
    for pid in pids:
        for path in glob.glob("/proc/%d/task/*/status" % pid):
            text = open(path).read()
            name = re.search(r"Name:\s*(.*)", text).group(1)
            count[path.split("/")[4], name] = sum(
                int(n) for n in re.findall(r"ctxt_switches:\s*(\d+)", text))
    return count


with Daemon() as dsd:
    dsd.ctl("run", MODEL, "-n", "16", "--temp", "0", "Hello")
    pids = [dsd.process.pid] + dsd.engines()
    time.sleep(1)  # bounded spins end
    before = switches(pids)
    time.sleep(2)  # the measured interval
    after = switches(pids)
    moved = {k: after[k] - before.get(k, 0) for k in after if after[k] != before.get(k, 0)}
    assert len(after) >= 3, "too few threads seen: %r" % after
    assert not moved, "threads woke up while idle: %r" % moved
    print("note: %d threads, 0 wake-ups in 2 s" % len(after))
