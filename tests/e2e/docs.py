#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: the man pages and the example configuration know every option, key and verb there is.
# Method: ask the programs (--help, --check-config) and look each word up in the page that owns it.
import os
import pathlib
import re
import subprocess
import sys

build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
root = pathlib.Path(__file__).resolve().parents[2]
missing = []


def ask(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def page(name):
    return (root / "man" / (name + ".scd")).read_text().replace("\\", "")


def look(words, text, where):
    if not words:
        missing.append("nothing was asked about " + where)
    missing.extend("%s: %s" % (where, w) for w in words if w not in text)


settings = ask(build / "dsd", "--check-config", "--config", "/dev/null")
keys = re.findall(r"^(\w+) =", settings, re.M)
look(["*%s*" % k for k in keys], page("dsd.conf.5"), "dsd.conf(5)")
look(keys, (root / "systemd/dsd.conf").read_text(), "systemd/dsd.conf")
look(["# [%s]" % s for s in re.findall(r"^\[(\w+)\]", settings, re.M)], page("dsd.conf.5"), "dsd.conf(5)")
documented = re.findall(r"^\*(\w+)\* =", page("dsd.conf.5"), re.M)
missing.extend("dsd.conf(5) has %s, dsd has not" % k for k in documented if k not in keys)

look(re.findall(r"--[a-z][a-z-]+", ask(build / "dsd", "--help")), page("dsd.8"), "dsd(8)")
usage = ask(build / "dsctl", "help")
verbs = re.findall(r"^  +(\w+)\s", usage, re.M)
verb_page = page("dsctl.1")
missing.extend("dsctl(1): *%s*" % v for v in verbs if not re.search(r"\*%s[* ]" % v, verb_page))  # "*lora load*" too
for verb in verbs:
    look(re.findall(r"--[a-z][a-z-]+", ask(build / "dsctl", "help", verb)), page("dsctl.1"), "dsctl(1) " + verb)
symbols = re.findall(r" T (ds_\w+)", ask("nm", "-D", "--defined-only", build / "libds.so.0"))
look(["%s" % s for s in symbols], page("libds.3"), "libds(3)")
assert len(symbols) <= 15, symbols
for line in sorted(set(missing)):
    print("not documented: " + line)
sys.exit(bool(missing))
