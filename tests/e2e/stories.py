#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: the trained TinyStories models tell the reference's stories, through every layer.
# Method: each golden prompt greedily over a live daemon, in F32, Q4_0 and Q8_0: ids and text equal to those
# that float32 arithmetic on the dequantised weights gives.
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from dsdtest import Daemon, answer, golden, skip

folder = golden()
if not folder:
    skip("golden data not found: the stories are not compared")
told = 0
with Daemon(models=folder / "models") as dsd:
    for path in sorted((folder / "models").glob("*.jsonl")):
        for line in open(path):
            story = json.loads(line)
            ids, text, _ = answer(dsd.json("run", path.stem, "--temp", "0", "--ignore-eos", "-n", str(len(story["ids"])),
                                           "--tokens", " ".join(map(str, story["prompt_ids"]))))
            assert ids == story["ids"] and text == story["text"], (path.stem, story["prompt"], text, story["text"])
            told += 1
assert told >= 18, told
print("note: %d stories, word for word" % told)
