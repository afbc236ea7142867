"""Configs: YAML, overrides, sizes, templates, DeepSpeed files."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tests.hostile.case import Bench, Case, deep
from tests.support.devices import device

HUGE = 10**12
LETTERS = "abcdefghijkl"


def bomb(element: str) -> str:
    """Lists of ten of the list before, twelve deep."""
    lines = [f"a: &a [{element}]"]
    lines += [f"{now}: &{now} [{', '.join([f'*{before}'] * 10)}]" for before, now in pairwise(LETTERS)]
    return "\n".join(lines) + "\n"


def merges() -> str:
    lines = ["a: &a {k: 1}"]
    lines += [f"{now}: &{now} {{<<: [{', '.join([f'*{before}'] * 10)}]}}" for before, now in pairwise(LETTERS)]
    return "\n".join(lines) + "\n"


def raw(name: str, content: str | bytes, says: str, file: str = "given.yaml") -> Case:
    def make(bench: Bench) -> list[str]:
        return ["run", "--dry-run", "--config", str(bench.file(file, content))]

    return Case(name, make, says)


def at(name: str, path: str, says: str) -> Case:
    return Case(name, lambda bench: ["run", "--dry-run", "--config", path], says)


def override(name: str, text: str, says: str, status: int = 2, **sections: dict[str, Any]) -> Case:
    return Case(name, lambda bench: bench.dry_run(text, **sections), says, status)


def huge(key: str, method: str = "lt_prefix") -> Case:
    name = f"10^12 in {key}" + ("" if method == "lt_prefix" else f" of {method}")
    says = rf"'{key}': .*(less than|from 2 to) .*\(got 10000000000000\)"
    return override(name, f"{key}={HUGE * 10}", says, method={"name": method})


def deepspeed(name: str, content: str, says: str) -> Case:
    def make(bench: Bench) -> Sequence[str]:
        return bench.dry_run(f"engine.deepspeed={bench.file('ds.json', content)}")

    return Case(f"DeepSpeed file: {name}", make, says)


YAML = [
    raw("yaml: aliases of aliases", bomb("x, x, x"), "given.yaml' cannot be read: its aliases"),
    raw("yaml: merges of merges", merges(), "given.yaml' cannot be read: its aliases"),
    raw("yaml: aliases of long texts", bomb("x" * 1000), "its aliases"),
    raw("yaml: an alias to itself", "run: &a [*a]\n", "leads back to itself"),
    raw("yaml: an alias to what is around it", "run: &a {dir: {x: *a}}\n", "leads back to itself"),
    raw("yaml: an alias of nothing", "run: *nobody\n", "cannot be read: line 1: found undefined alias"),
    raw("yaml: lists nested 100,000 deep", "run: " + deep("[", "]"), "cannot be read"),
    raw("yaml: mappings nested 100,000 deep", "run: " + deep("{a: ", "}"), "cannot be read"),
    raw("yaml: a number of 5,000 digits", f"run: {{dir: x, seed: {'1' * 5000}}}\n", "more than 300 digits"),
    raw(
        "yaml: a hexadecimal number of 5,000 digits", f"run: {{dir: x, seed: 0x{'f' * 5000}}}\n", "more than 300 digits"
    ),
    raw("yaml: a key of 5,000 digits", f"? 0x{'f' * 5000}\n: 1\n", "more than 300 digits"),
    raw("yaml: 2 MiB of comments", "# comment\n" * 220_000, "at most 262,144 are read"),
    raw("yaml: a Python object", "run: !!python/object/apply:os.getcwd []\n", "cannot be read"),
    raw("yaml: nothing", "", "does not hold a 'section"),
    raw("yaml: a list", "[1, 2]", "does not hold a 'section"),
    raw("yaml: null bytes", b"run: \0\0\0\n", "cannot be read"),
    raw("yaml: UTF-16", "run: {dir: x}\n".encode("utf-16"), "cannot be read"),
    raw("yaml: not closed", "run: {dir: [", "cannot be read"),
    raw("yaml: a key twice", "run: {dir: a}\nrun: {dir: b}\n", "duplicate key"),
    raw("yaml: two documents", "run: {dir: a}\n---\nrun: {dir: b}\n", "cannot be read"),
    raw("yaml: sections that are lists", "run: []\nbackbone: [1]\ndata: 3\nmethod: x\n", "'run'.*'backbone'.*'data'"),
    raw("yaml: keys that are lists", "? [a, b]\n: c\n", r"'\('a', 'b'\)': keys should be strings"),
    raw("yaml: a date and bytes", "run: {dir: 2001-01-01, seed: !!binary aGVsbG8=}\n", "'run.dir'.*'run.seed'"),
    raw("yaml: 15,000 sections", "{" + ", ".join(f"k{n}: 1" for n in range(15_000)) + "}", "unknown key 'k0'"),
    at("/dev/zero as config", "/dev/zero", "a device, not a file"),
    at("/dev/null as config", "/dev/null", "a device, not a file"),
    at("/dev/stdin as config", "/dev/stdin", "a device, not a file"),
    at("a folder as config", "/tmp", "a folder, not a file"),
    at("no such config", "/nowhere/at/all.yaml", "No such file"),
    at("a config under a file", "/etc/passwd/x.yaml", "Not a directory"),
    at("a config whose name is too long", "/" + "x" * 5000, "File name too long"),
    Case("a fifo as config", lambda bench: ["run", "--config", str(bench.fifo("c.yaml"))], "a pipe, not a file"),
    Case(
        "a loop of links as config",
        lambda bench: ["run", "--config", str(bench.link("l.yaml", "l.yaml"))],
        "symbolic links",
    ),
]

OVERRIDES = [
    override("override: nested 100,000 deep", "labels.names=" + "[" * 100_000, "'labels.names'"),
    override("override: aliases", "labels.texts={a: &a [x, x], b: &b [*a, *a], c: [*b, *b]}", "'labels.texts"),
    override(
        "override: 5,000 digits",
        f"run.seed={'9' * 5000}",
        "'run.seed' cannot be read .a number has more than 300 digits",
    ),
    override("override: 100,000 characters", f"train.schedule={'x' * 100_000}", "'train.schedule'"),
    override("override: an unknown key of 100,000 characters", f"train.{'x' * 100_000}=1", "unknown key .*left out"),
    override("override: 10,000 sections", ".".join("a" * 10_000) + "=1", "unknown key"),
    override("override: escapes in a key", "train.\x1b[31m=1", r"unknown key 'train.\\u001b"),
    override("override: infinity", "train.learning_rate=.inf", "'train.learning_rate'"),
    override("override: not a number", "train.weight_decay=.nan", "'train.weight_decay'"),
    override("override: more than a float holds", "train.learning_rate=1e999", "'train.learning_rate'"),
    override("override: a negative size", "train.batch_size=-1", "'train.batch_size'"),
    override("override: half a batch", "train.batch_size=1.5", "'train.batch_size'"),
    override("override: half a character", "run.dir=\udc80", "'run.dir' cannot be read .unacceptable character #xdc80"),
    override("run.dir of 5,000 characters", f"run.dir=/tmp/{'x' * 5000}", "File name too long"),
    override("run.dir with a null", 'run.dir="/tmp/a\\0b"', "'run.dir': a null character cannot stand in it"),
    override("run.dir is a file", "run.dir=/etc/passwd", "cannot be written"),
    Case("run.dir is a device", lambda b: b.dry_run(f"run.dir={device(b.folder, 'null')}"), "null' cannot be written"),
    override("run.dir is /", "run.dir=/", "not a run directory"),
    override("run.dir is /proc/self", "run.dir=/proc/self", "not a run directory"),
    override(
        "nothing to evaluate", "data.test=null", "nothing to evaluate.*set data.test", evaluate={"splits": ["test"]}
    ),
    override("a text for a label of 5,000 digits", f"labels.texts={{'{'7' * 5000}': seven}}", "is not YAML .*left out"),
    override(
        "a hypothesis of a million words", f"labels.texts={{sport: {'word ' * 20_000}}}", "tokens; it must have 1 to 64"
    ),
]

SIZES = [
    *map(huge, ["train.max_steps", "train.epochs", "train.batch_size", "train.gradient_accumulation"]),
    *map(huge, ["train.eval_every", "train.save_every", "train.keep_checkpoints", "train.log_every"]),
    *map(huge, ["train.early_stopping_patience", "train.candidates", "evaluate.batch_size", "run.seed"]),
    *map(huge, ["data.max_length", "data.workers", "data.train_limit", "data.train_per_label", "data.test_limit"]),
    *map(huge, ["engine.threads", "engine.heartbeat_seconds", "engine.timeout_seconds", "method.rank"]),
    huge("method.tokens", "prompt"),
    huge("method.tokens", "prefix"),
    huge("method.tokens", "p_tuning"),
    huge("method.bottleneck", "prefix"),
    huge("method.encoder_width", "p_tuning"),
    huge("method.rank", "lora"),
    huge("method.alpha", "lora"),
    override("a million tokens", "method.tokens=1000000", "exceed the backbone's", method={"name": "prompt"}),
    override(
        "a million tokens in every layer", "method.tokens=1000000", "exceed the backbone's", method={"name": "prefix"}
    ),
    override(
        "the widest encoder", "method.encoder_width=65536", "trainable parameters: ", 0, method={"name": "p_tuning"}
    ),
    override("two texts in a batch of a million", "train.batch_size=1000000", r"steps: 2 ", 0),
    override("a billion steps", "train.max_steps=1000000000", r"steps: 1,000,000,000", 0),
]

TEMPLATES = [
    override("template: a width", "labels.template='{label:>9999999999}'", "'labels.template'.*no other field"),
    override("template: a conversion", "labels.template='{label!x}'", "'labels.template'.*no other field"),
    override("template: an attribute", "labels.template='{label.__class__}'", "'labels.template'.*no other field"),
    override("template: an index", "labels.template='{label[0]}'", "'labels.template'.*no other field"),
    override("template: a number", "labels.template='{0}'", "'labels.template'.*no other field"),
    override("template: nothing", "labels.template='{}'", "'labels.template'.*no other field"),
    override(
        "template: nested fields",
        "labels.template='{label:{label}}'",
        "'labels.template'.*no other field, such as {label:}",
    ),
    override("template: half a brace", "labels.template='{label} {'", "'labels.template'.*brace"),
    override("template: only an escaped label", "labels.template='{{label}}'", "'labels.template'.*must contain"),
    override(
        "template: 100,000 characters", f"labels.template='{{label}}{'x' * 100_000}'", "'labels.template'.*1000 char"
    ),
    override("template: literal braces", "labels.template='{{{label}}} {{x}}'", "labels: 3, at most", 0),
]

DEEPSPEED = [
    override("DeepSpeed file: none", "engine.deepspeed=nowhere.json", "'nowhere.json' does not exist"),
    override("DeepSpeed file: /dev/zero", "engine.deepspeed=/dev/zero", "a device, not a file"),
    override("DeepSpeed file: a folder", "engine.deepspeed=/tmp", "'/tmp' is a folder: take one of ds_configs"),
    deepspeed("nested 100,000 deep", deep("[", "]"), "is not JSON"),
    deepspeed("5,000 digits", f'{{"zero_optimization": {{"stage": {"1" * 5000}}}}}', "is not JSON"),
    deepspeed("NaN", '{"gradient_clipping": NaN}', "NaN is not a number"),
    deepspeed("a list", "[]", "must hold a JSON object"),
    deepspeed("stage 10^12", f'{{"zero_optimization": {{"stage": {HUGE}}}}}', "stage must be 0, 1, 2 or 3"),
    deepspeed("empty", "", "is not JSON"),
    deepspeed("2 MiB", json.dumps({"x" * 2_000_000: 1}), "at most 262,144"),
    Case(
        "DeepSpeed file: a fifo",
        lambda bench: bench.dry_run(f"engine.deepspeed={bench.fifo('ds.json')}"),
        "a pipe, not a file",
    ),
    Case(
        "all faults at once",
        lambda bench: bench.dry_run(
            "data.train=/nowhere/t.csv",
            "engine.deepspeed=no.json",
            "backbone.name_or_path=/nowhere/b",
            "data.test=/nowhere/u.csv",
        ),
        r"/nowhere/t\.csv.*/nowhere/u\.csv.*no\.json.*/nowhere/b",
    ),
]

CASES = [*YAML, *OVERRIDES, *SIZES, *TEMPLATES, *DEEPSPEED]
