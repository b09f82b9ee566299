"""Bad values for keys of a recipe and bad recipe files, made by rule; see test_bad_values.py."""

from collections.abc import Iterator

TOO_LONG = "y/" * 3000

TEXTS = (
    '"\\0"',
    '"???"',
    '""',
    '"   "',
    '"a\\nb"',
    '"\\ud800"',
    "${data.path}",
    "${oc.env:HOME}",
    "[${oc.env:HOME}]",
    "x" * 300,
    TOO_LONG,
    "z" * 100_000,
    "/dev/zero",
    "../../../etc/passwd",
    "nothing-of-this-name",
)
NUMBERS = (
    "-1",
    "0",
    "1e6",
    "1e30",
    "-1e30",
    ".inf",
    "-.inf",
    ".nan",
    "1" + "0" * 32,
    "1" + "0" * 400,
    "9" * 5000,
    "0x" + "f" * 40,
    "12:30",
    "010",
    "1.5",
)
SHAPES = (
    "null",
    "true",
    "[]",
    "[a]",
    "[[1]]",
    "[[[[[[[[[[1]]]]]]]]]]",
    "[null]",
    "[1, [2]]",
    "{}",
    "{a: 1}",
    "[{a: 1}]",
    "{" * 3000,
    "2024-01-01",
    "!!omap [a: 1]",
    "!!set {a}",
    "!!binary aGFsbG8=",
    "!!python/object/apply:os.system [true]",
    "&a [*a]",
)
VALUES = TEXTS + NUMBERS + SHAPES

_BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(12)]
)
_MAP_BOMB = "\n".join(
    ["a0: &a0 {x: 1, y: 2}"]
    + [f"a{n + 1}: &a{n + 1} {{{', '.join(f'k{i}: *a{n}' for i in range(9))}}}" for n in range(12)]
)


def files() -> Iterator[tuple[str, bytes]]:
    """Names and contents of files that are no recipes."""
    texts = {
        "empty": "",
        "list": "- a\n- b\n",
        "number": "5\n",
        "text": "words\n",
        "bomb": _BOMB,
        "map_bomb": _MAP_BOMB,
        "recursive": "run: &a {dir: *a}\n",
        "merge": "x: &x {a: 1}\nrun:\n  <<: *x\n",
        "deep": "run: " + "{a: " * 5000 + "1" + "}" * 5000,
        "deep_list": "run: " + "[" * 5000,
        "deep_block": "\n".join(" " * n + "a:" for n in range(400)),
        "twice": "run: {dir: a}\nrun: {dir: b}\n",
        "twice_within": "run:\n  dir: a\n  dir: b\n",
        "job_list": "job: [finetune]\n",
        "job_mapping": "job: {a: 1}\n",
        "job_null": "job: null\n",
        "key_list": "? [a, b]\n: 1\n",
        "key_number": "1: 2\n",
        "key_null": "~: 2\n",
        "group_scalar": "run: 5\nloss: text\n",
        "group_list": "run: [dir]\n",
        "tabs": "run:\n\tdir: a\n",
        "open_quote": 'run: "a\n',
        "two_documents": "run: {dir: a}\n---\nrun: {dir: b}\n",
        "tag": "!!python/object:os.path {}\n",
        "omap": "!!omap [run: {dir: a}]\n",
    }
    yield from ((name, text.encode()) for name, text in texts.items())
    yield "latin1", "run: {dir: caf\xe9}\n".encode("latin-1")
    yield "utf16", "run: {dir: a}\n".encode("utf-16")
    yield "nul", b"run: {dir: a\0b}\n"
    yield "zeros", b"\0" * 4096
    yield "large", b"# " + b"x" * 2_000_000
