"""Renders a stranger's chat template in a process of its own, with limits of time and memory.

A template is a program. Jinja's sandbox keeps it from the machine, but not from running for ever or
filling the memory. ``python -m mm_cca.adapters.template_process`` is that process: a request as
JSON on its input, the texts or an error as JSON on its output.
"""

import json
import subprocess
import sys
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SECONDS = 3
"""Of computing, after start-up. A template takes a millisecond."""
WAIT = 120
"""Seconds until the answer must be there, on a machine that is busy."""
MEMORY = 2 * 1024**3
LONGEST = 100_000
"""Characters of a template or of what it renders."""


class TemplateError(Exception):
    """The template can't be rendered; says why."""


def render(template: str, prompts: list[str], tokens: dict[str, str]) -> list[str]:
    """The user's turn with each prompt, and the start of the model's.

    Args:
        template: Jinja, for messages whose content is a list of parts.
        prompts: one conversation each.
        tokens: name -> token, which templates may use.

    Raises:
        TemplateError: it is wrong, or needs too much time or memory.
    """
    if len(template) > LONGEST:
        raise TemplateError(f"it has {len(template)} characters; allowed: {LONGEST}")
    request = json.dumps({"template": template, "prompts": prompts, "tokens": tokens})
    command = [sys.executable, "-m", "mm_cca.adapters.template_process"]
    try:
        done = subprocess.run(
            command, input=request.encode(), capture_output=True, timeout=WAIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise TemplateError(f"it did not end in {WAIT} s; a millisecond is usual") from None
    if done.returncode < 0:  # ended by a signal: the system's, at a limit
        raise TemplateError(
            f"it needs more than {SECONDS} s or {MEMORY // 1024**3} GB; a millisecond is usual"
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise TemplateError(answer["error"])
    texts: list[str] = answer["texts"]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise TemplateError("it writes half a character (a lone surrogate)") from None
    return texts


def _rendered(request: dict[str, Any]) -> dict[str, Any]:
    _limit()
    contents = [[{"type": "text", "text": prompt}] for prompt in request["prompts"]]
    turns = [[{"role": "user", "content": content}] for content in contents]
    try:
        rendered: Any = render_jinja_template(
            turns,
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["tokens"],
        )
    except Exception as error:  # whatever a template makes Jinja raise
        first = (str(error).splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {first}"[:300]}
    texts: list[str] = rendered[0]
    long = max(map(len, texts))
    if long > LONGEST:
        return {"error": f"it makes {long} characters of a short prompt; allowed: {LONGEST}"}
    return {"texts": texts}


def _limit() -> None:
    """Of time and memory; where the system has no such limits, the wait of the caller ends it."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    json.dump(_rendered(json.load(sys.stdin)), sys.stdout)
