"""What a request to ``/v1/images/generations`` says, and how it is refused, in OpenAI's terms."""

import json
import secrets
from dataclasses import dataclass
from typing import Any, NoReturn

from mm_cca.adapters.base import Grid, UnifiedModel
from mm_cca.errors import UserError

MOST_IMAGES = 10
"""OpenAI's own limit of ``n``."""
LARGEST_SEED = 2**63 - 1
FORMATS = {
    "response_format": ("b64_json",),
    "output_format": ("png",),
    "stream": (False,),
}
"""Fields with one allowed value. Others that change nothing here (quality, style, user) are
ignored, as clients send them whether or not a server knows them."""


class ApiError(Exception):
    """A request that is not answered with images, in OpenAI's terms.

    Attributes:
        status: of HTTP.
        param: the field that is wrong.
        code: OpenAI's word for it, where there is one.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True)
class ImagesRequest:
    """``count`` images of a prompt; image k is drawn with the seed ``seed`` and the number k."""

    prompt: str
    count: int
    grid: Grid
    seed: int


def read_request(body: bytes, model: UnifiedModel, served: str, grid: Grid) -> ImagesRequest:
    """A request's body in JSON.

    Args:
        body: what was sent.
        model: whose sizes are allowed.
        served: its name.
        grid: without ``size``, or with "auto".

    Raises:
        ApiError: 400, or 404 for another model.
    """
    try:
        fields = json.loads(body)
    except ValueError as error:  # also bytes that are no text
        raise ApiError(400, f"the body is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be a JSON object with a prompt.")
    if fields.get("model") not in (None, "", served):
        message = f"the model {fields['model']!r} is not served here; served: {served}."
        raise ApiError(404, message, param="model", code="model_not_found")
    for name, allowed in FORMATS.items():
        if fields.get(name) is not None and fields[name] not in allowed:
            _refuse(name, fields[name], " or ".join(json.dumps(value) for value in allowed))
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        _refuse("prompt", prompt, "a text that is not empty")
    count = _whole_number(fields, "n", 1, 1, MOST_IMAGES)
    seed = _whole_number(fields, "seed", secrets.randbelow(2**53), 0, LARGEST_SEED)
    return ImagesRequest(prompt, count, _grid(fields.get("size"), model, grid), seed)


def _whole_number(
    fields: dict[str, Any], name: str, default: int, lowest: int, highest: int
) -> int:
    value = fields.get(name)
    if value is None:
        return default
    # JSON's true is a number to Python.
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        _refuse(name, value, f"a whole number from {lowest} to {highest}")
    return value


def _grid(size: Any, model: UnifiedModel, default: Grid) -> Grid:
    """OpenAI writes width x height."""
    if size in (None, "auto"):
        return default
    side = model.pixels_per_code
    usual = f"{default[1] * side}x{default[0] * side}"
    parts = size.split("x") if isinstance(size, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        _refuse("size", size, f'"auto", or width and height in pixels such as "{usual}"')
    width, height = (int(part[:9]) for part in parts)
    if not width or not height or width % side or height % side:
        _refuse("size", size, f"multiples of {side} pixels, such as {usual}")
    grid = (height // side, width // side)
    if grid[0] * grid[1] > model.max_tokens:
        _refuse("size", size, f"at most {model.max_tokens} tokens; {usual} fits")
    try:
        model.layout(grid)
    except UserError as error:
        allowed = str(error).partition("this checkpoint: ")[2].rstrip(".")
        _refuse("size", size, f"{allowed} (height, width); {usual} is one")
    return grid


def _refuse(name: str, value: Any, allowed: str) -> NoReturn:
    shown = "missing" if value is None else json.dumps(value)[:100]
    code = "missing_required_parameter" if value is None else "invalid_value"
    raise ApiError(400, f"{name} is {shown}; allowed: {allowed}.", param=name, code=code)
