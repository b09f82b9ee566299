"""Tokenizer files, chat templates and processors as a stranger may write them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from tests.support.hostile_case import Damage, Hostile, put_bytes, put_text, read, write


def tokenizers(folder: Path) -> Iterator[Hostile]:
    for file in sorted(folder.rglob("tokenizer.json")):
        name = str(file.relative_to(folder))
        stored = read(file)
        for key, values in {
            "model": (None, [], {}, {"type": "none-such"}),
            "added_tokens": (None, 5, [5], []),
            "pre_tokenizer": (5, {"type": "none-such"}),
            "normalizer": (5, {"type": "none-such"}),
            "post_processor": ({"type": "none-such"},),
            "decoder": (5, {"type": "none-such"}),
        }.items():
            for value in values:
                yield Hostile(
                    f"tokenizer {key}={value!r}",
                    put_text(name, json.dumps(stored | {key: value})),
                    False,
                )
        yield Hostile("tokenizer deep", put_text(name, "[" * 100_000))
    for file in sorted(folder.rglob("tokenizer_config.json")):
        name, stored = str(file.relative_to(folder)), read(file)
        for key, values in {
            "tokenizer_class": ("NoSuchTokenizer", 5, None, "BertTokenizer"),
            "pad_token": (None, 5, [], {"content": 5}),
            "bos_token": (None, 5, "new words"),
            "model_max_length": ("x", -1, 0),
            "added_tokens_decoder": ([], {"x": {}}, {"5": 5}, {"-1": {"content": "a"}}),
            "auto_map": ({"AutoTokenizer": ["modeling_evil.Evil", None]},),
        }.items():
            for value in values:
                yield Hostile(
                    f"tokenizer_config {key}={value!r}",
                    put_text(name, json.dumps(stored | {key: value})),
                    False,
                )


TEMPLATES = {
    "empty": "",
    "blank": "   \n",
    "without the caption": "<|User|>: hello",
    "the caption twice": "{% for m in messages %}{{ m['content'][0]['text'] * 2 }}{% endfor %}",
    "the caption in capitals": "{{ messages[0]['content'][0]['text'] | upper }}",
    "the caption cut": "{{ messages[0]['content'][0]['text'][:20] }}",
    "syntax": "{% for m in messages %}{{ m",
    "unknown tag": "{% import os %}x",
    "unknown filter": "{{ messages[0]['content'][0]['text'] | none_such }}",
    "undefined": "{{ nothing.at.all }}",
    "undefined call": "{{ nothing() }}",
    "raise_exception": "{{ raise_exception('no') }}",
    "division": "{{ 1 // 0 }}",
    "wrong index": "{{ messages[7]['content'] }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('touch RAN').read() }}",
    "attr": "{{ messages | attr('__class__') }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "mutation": "{{ messages.clear() }}",
    "many": "{% for i in range(10**9) %}x{% endfor %}",
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "endless macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "memory": "{{ 'x' * 10 ** 11 }}",
    "memory list": "{{ ([0] * 10 ** 10) | length }}",
    "doubling": "{% set n = namespace(x='xx') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "wide": "{{ 'x' | center(10 ** 11) }}",
    "wide format": "{{ '%99999999999d' | format(1) }}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "large": "{# " + "x" * 3_000_000 + " #}",
    "surrogate": "{{ '\\ud800' }}{{ messages[0]['content'][0]['text'] }}",
}


def templates(*, told: bool) -> Iterator[Hostile]:
    for name, text in TEMPLATES.items():
        yield Hostile(f"template {name}", put_text("chat_template.jinja", text), told)
    yield Hostile(
        "template missing", lambda folder: (folder / "chat_template.jinja").unlink(), told
    )
    yield Hostile("template binary", put_bytes("chat_template.jinja", b"\xff\xfe\x00"), told)


def processors(name: str) -> Iterator[Hostile]:
    for key, values in {
        "image_std": ([0, 0, 0], [0.5, 0.5], ["x"] * 3, None, [math.nan] * 3, 0),
        "image_mean": ([0.5], [0.5] * 4, ["x"] * 3, None, [math.nan] * 3),
        "rescale_factor": (0, "x", None, math.nan),
        "size": (None, 5, {}, {"height": -1, "width": 0}),
        "image_processor_type": ("NoSuchProcessor", 5),
        "processor_class": ("NoSuchProcessor", 5),
        "image_seq_length": ("x", 0, -1, 10**30, None),
        "spatial_factor": ("x", 0, -1),
        "sft_format": ("none-such", 5, []),
    }.items():
        for value in values:
            yield Hostile(f"{name} {key}={value!r}", _update(name, key, value), False)


def _update(name: str, key: str, value: object) -> Damage:
    """The key wherever the file has it, or at its top."""

    def damage(folder: Path) -> None:
        stored = read(folder / name)
        inner = stored.get("image_processor")
        held = inner if isinstance(inner, dict) and key in inner else stored
        held[key] = value
        write(folder / name, stored)

    return damage
