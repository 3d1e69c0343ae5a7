"""Reads what a report packs for its script."""

import base64
import json
import zlib
from typing import Any


def unpacked(text: str) -> Any:
    """The JSON of an index or a block of traces."""
    return json.loads(zlib.decompress(base64.b64decode(text)))
