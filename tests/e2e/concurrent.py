#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: what a request yields does not depend on its company.
# Method: 16 prompts of mixed lengths run alone, then all at once with random cancels among copies of
# them; every stream that was not cancelled must be byte-identical, every cancelled one a prefix.
import json
import os
import random
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from dsdtest import MODEL, PROMPTS, Daemon, answer, finish, need_model

need_model()
random.seed(7)


def arguments(index):
    temperature = ["0", "0.9"][index % 2]
    return ["run", MODEL, "--json", "-n", str(24 + 8 * (index % 5)), "--temp", temperature,
            "--seed", str(100 + index), PROMPTS[index]]


with Daemon() as dsd:
    dsd.ctl("load", MODEL)
    alone = [answer([json.loads(l) for l in dsd.ctl(*arguments(i)).stdout.splitlines()])
             for i in range(16)]
    for round_number in range(2):
        streams = [dsd.popen(*arguments(i)) for i in range(16)]
        victims = [(i, dsd.popen(*arguments(i))) for i in random.sample(range(16), 8)]
        for i, victim in victims:
            line = victim.stdout.readline()  # it runs: end it at a random token
            for _ in range(random.randrange(6)):
                line = victim.stdout.readline() or line
            victim.send_signal(signal.SIGINT if random.random() < 0.7 else signal.SIGKILL)
        for i, stream in enumerate(streams):
            ids, text, final = finish(stream)
            assert (ids, text) == alone[i][:2], "prompt %d: %r is not %r" % (i, text, alone[i][1])
            assert final["reason"] == alone[i][2]["reason"]
        for i, victim in victims:
            victim.communicate(timeout=60)
    # A second run of the same prompt reuses the cached prefix and must not differ either.
    again = answer(dsd.json(*[a for a in arguments(10) if a != "--json"]))
    assert again[:2] == alone[10][:2]
    assert again[2]["usage"]["cached_tokens"] > 0, "the prefix cache was not used"
    left = dsd.json("requests")
    assert not left or not left[0].get("requests"), "requests left behind: %r" % left
print("note: 16 streams beside 8 cancelled ones, twice: byte-identical to each alone")
