"""The files of networks.

A file is a safetensors file with the arrays of a network. Its metadata contains a card as JSON text, and a sha256 of the
arrays and the card. Reading a file never executes code. The content of the card is checked by the code that uses it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.learning.network import Network
from arbitrage_cli.types import Json

FILE_SCHEMA = 1  # format of the files
MAX_FILE_BYTES = 1 << 26


def encode(network: Network, card: str) -> bytes:
    """Return the content of the file of a network and its card."""
    from safetensors.numpy import save  # slow to import

    arrays = network.arrays()
    about = json.dumps({"schema": FILE_SCHEMA, "card": card, "sha256": digest_of(card, arrays)}, sort_keys=True)
    return save(arrays, {"arbitrage": about})


def decode(data: bytes) -> tuple[dict[str, NDArray[Any]], Json]:
    """Return the arrays and the card in the content of a file. Raises ValueError if it is invalid."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a valid safetensors file ({error})") from error
    header = _object(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = _object(header.get("__metadata__", {}).get("arbitrage", ""))
    if about.get("schema") != FILE_SCHEMA:
        raise ValueError(f"unknown schema {about.get('schema')!r}; this version of arbitrage supports {FILE_SCHEMA}")
    card = about.get("card")
    if not isinstance(card, str) or about.get("sha256") != digest_of(card, arrays):
        raise ValueError("the file was changed after it was written: its sha256 does not match")
    return arrays, _object(card)


def digest_of(card: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the sha256 of a card's text and of the arrays with their names, types and shapes."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _object(text: str | bytes) -> Json:
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError("the metadata is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("the metadata is not a JSON object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
