#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# Goal: a folder of safetensors works wherever a GGUF file works, and a broken one costs one clear error.
# Method: folders of the golden data by path and by name through a live daemon: their next-token probabilities
# against the golden ones, the verbs that take a model; then copies with a shard missing, a file cut short, and
# config.json at odds with the tensors. The engine must be the same process at the end.
import json
import os
import pathlib
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from dsdtest import Daemon, answer, golden, skip

data = golden()
if not data:
    skip("golden data not found: folders of safetensors are not run")


def expected(name):
    prompt = None
    for line in open(data / "gguf" / (name + ".golden")):
        key, _, rest = line.strip().partition(" ")
        if key == "prompt":
            prompt = rest
        elif key == "top" and len(prompt.split()) == 40:
            return prompt, {int(p.split(":")[0]): float(p.split(":")[1]) for p in rest.split()}
    raise AssertionError("no prompt of 40 tokens for " + name)


def check_score(dsd, model, name):
    prompt, top = expected(name)
    result = dsd.json("score", model, "--tokens", prompt)[0]
    got = {t["id"]: t["logprob"] for t in result["next"]}
    shared = [abs(got[i] - top[i]) for i in top if i in got]
    # keys and values are kept as F16 where the weights are no F32: hence no float tolerance here
    assert len(shared) >= 4 and max(shared) < 0.02, (model, shared)


def copy(source, to):
    shutil.copytree(source, to)
    os.chmod(to, 0o755)
    for path in to.iterdir():
        os.chmod(path, 0o644)
    return to


def change(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(fields)
    path.write_text(json.dumps(config))


work = pathlib.Path(tempfile.mkdtemp(prefix="dsd-folder."))
models = work / "models"
models.mkdir()
try:
    for name in ("llama3rope", "qwen3"):
        copy(data / "hf" / name, models / name)
    with Daemon(models=models) as dsd:
        listed = dsd.ctl("list").stdout
        assert "llama3rope" in listed and "qwen3" in listed and "incomplete" not in listed, listed
        for name in ("llama", "llama3rope", "qwen2", "qwen3", "qwen3moe", "deepseek-v2-lite", "deepseek-v3"):
            check_score(dsd, str(data / "hf" / name), name)
        engines = dsd.engines()
        check_score(dsd, "llama3rope", "llama3rope")  # by name
        check_score(dsd, "qwen3", "qwen3")

        path = str(models / "qwen3") + "/"
        ids, text, final = answer(dsd.json("run", path, "--temp", "0", "-n", "8", "Hello"))
        assert len(ids) == 8, final
        shown = dsd.ctl("show", path).stdout
        assert "qwen3" in shown and "qwen3.block_count" in shown, shown
        tokens = dsd.json("tokenize", path, "Hello world")[0]["ids"]
        line = json.loads(open(data / "gguf" / "qwen2.tok.jsonl").readline())
        assert dsd.json("tokenize", path, line["text"])[0]["ids"] == line["ids"] and tokens
        dsd.ctl("load", path)
        dsd.ctl("verify", path)

        def refused(folder, *words):
            for model in (str(folder), folder.name):  # by path and by name say the same
                result = dsd.ctl("run", model, "-n", "1", "x", check=False)
                assert result.returncode == 1, (model, result.stdout, result.stderr)
                assert all(w in result.stderr for w in words), (words, result.stderr)
                assert len(result.stderr.strip().splitlines()) == 1, result.stderr

        broken = copy(data / "hf" / "llama3rope", models / "no-shard")
        os.remove(broken / "model-00002-of-00002.safetensors")
        refused(broken, "no-shard/model-00002-of-00002.safetensors", "missing")

        broken = copy(data / "hf" / "llama3rope", models / "no-index-no-shard")
        os.remove(broken / "model.safetensors.index.json")
        os.remove(broken / "model-00001-of-00002.safetensors")
        refused(broken, "no-index-no-shard/model-00001-of-00002.safetensors", "missing")

        broken = copy(data / "hf" / "qwen3", models / "odd-config")
        change(broken, num_attention_heads=8)
        refused(broken, "odd-config/model.safetensors", "self_attn.", "num_attention_heads", "config.json")

        broken = copy(data / "hf" / "qwen3", models / "no-layers")
        change(broken, num_hidden_layers=1)
        refused(broken, "model.layers.1.", "num_hidden_layers")

        broken = copy(data / "hf" / "qwen3", models / "bad-field")
        change(broken, hidden_size="wide")
        refused(broken, "bad-field/config.json", "hidden_size")

        broken = copy(data / "hf" / "qwen3", models / "odd-kind")  # what has a default has it when it is not said
        change(broken, rms_norm_eps="x")
        refused(broken, "odd-kind/config.json", "rms_norm_eps", "number")
        broken = copy(data / "hf" / "deepseek-v3", models / "odd-scaling")
        change(broken, routed_scaling_factor=[2.5])
        refused(broken, "odd-scaling/config.json", "routed_scaling_factor", "number")

        broken = copy(data / "hf" / "qwen3", models / "cut")
        with open(broken / "model.safetensors", "r+b") as file:
            file.truncate(200000)
        refused(broken, "cut/model.safetensors", "truncated")

        broken = copy(data / "hf" / "qwen3", models / "garbage")
        (broken / "config.json").write_text('{"architectures": [')
        refused(broken, "garbage/config.json", "JSON")

        broken = copy(data / "hf" / "qwen3", models / "no-tensors")
        os.remove(broken / "model.safetensors")
        refused(broken, "no-tensors", "safetensors")

        (work / "empty").mkdir()
        result = dsd.ctl("run", str(work / "empty"), "x", check=False)
        assert result.returncode == 1 and "config.json" in result.stderr, result.stderr

        check_score(dsd, "qwen3", "qwen3")
        assert dsd.engines() == engines, "the engine was lost over a bad folder"
finally:
    shutil.rmtree(work, ignore_errors=True)
