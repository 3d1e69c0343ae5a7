"""What JSON and TOML files say, as records: of the right types, or one line that names what is not."""

import json
from typing import Any, TypeVar

T = TypeVar("T")


def checked(kind: type[T], value: object) -> T:
    """The value as this kind of record; no type is converted to another. ValueError, which names the field."""
    from pydantic import TypeAdapter, ValidationError  # slow to import

    try:
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str), strict=True)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ValueError(f"{_place(first['loc'])}{first['msg']}") from None


def _place(parts: tuple[Any, ...]) -> str:
    return f"{'.'.join(map(str, parts))}: " if parts else ""
