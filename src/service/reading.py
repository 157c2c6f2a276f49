"""A request's body: a picture, or a form with pictures and options, within limits."""

from collections.abc import Callable
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from src.service.pictures import Limits, Refused

MULTIPART = "multipart/form-data"


class Sent(NamedTuple):
    """What a request's body held."""

    files: list[tuple[str, bytes]]
    """Names and contents."""
    fields: dict[str, str]


async def read(request: Request, limits: Limits, most: int, arrived: Callable[[int], None]) -> Sent:
    """A body that is a picture, or a form of up to `most` with fields.

    Args:
        arrived: told of the bytes of each part that arrives; may raise Refused.

    Raises:
        Refused: 400 no picture, 413 more than `limits`, 415 another kind of body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    size = request.headers.get("content-length", "")
    too_large = Refused(413, f"more than {limits.bytes / 1e6:g} MB: scale the picture down, or send fewer at a time")
    if size.isdecimal() and int(size) > limits.bytes:
        raise too_large
    left = limits.bytes

    async def receive() -> Any:
        nonlocal left
        message = await request.receive()
        count = len(message.get("body", b""))
        left -= count
        if left < 0:
            raise too_large
        arrived(count)
        return message

    body = Request(request.scope, receive)
    if kind == MULTIPART:
        return await read_form(body, most)
    if kind.startswith("image/") or kind in ("application/octet-stream", ""):
        return Sent([("picture", b"".join([part async for part in body.stream()]))], {})
    raise Refused(415, f"a body of {kind}: send a picture (image/…) or a form with pictures ({MULTIPART})")


async def read_form(body: Request, most: int) -> Sent:
    """The files and fields of a form."""
    sent = Sent([], {})
    try:
        async with body.form(max_files=most, max_fields=32) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    sent.files.append((value.filename or name, await value.read()))
                else:
                    sent.fields[name] = value
    except HTTPException as error:
        if "Too many files" in str(error.detail):
            raise Refused(413, f"more than {most} pictures: send fewer at a time") from error
        raise Refused(400, f"not a form that can be read ({error.detail})") from error
    except FormParserError as error:
        raise Refused(400, f"not a form that can be read ({error})") from error
    if not sent.files:
        raise Refused(400, "no picture in the form: send one as a file")
    return sent


async def left(request: Request) -> None:
    """Returns when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
