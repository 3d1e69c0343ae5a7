"""The name of a model on a server, `http://host:port/v1#model`, and the API key that goes with it. Sends nothing."""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from arbitrage_cli.errors import UsageError
from arbitrage_cli.types import ModelRole

EXAMPLE = "for example http://gpu-box:8000/v1 or http://gpu-box:8000/v1#Qwen/Qwen3-32B"
KEY_VARIABLE = "ARBITRAGE_API_KEY"


@dataclass(frozen=True, slots=True)
class Address:
    """A server and one of its models. `base` is the API's address, mostly with `/v1`; without a `model` the server's only one."""

    base: str
    model: str | None = None

    @classmethod
    def parse(cls, source: str) -> "Address":
        """From what the user typed. UsageError if it is not an address, or has a password in it."""
        base, _, model = source.partition("#")
        try:
            parts = urlsplit(base)
            is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port out of range, a broken IPv6 address
            is_address = False
        if not is_address or not base.isprintable() or " " in base:
            raise UsageError(f"'{base.partition('?')[0].rpartition('@')[2]}' is not the address of a server", EXAMPLE)
        if parts.username is not None or parts.password is not None or parts.query:
            raise UsageError(
                f"{parts.hostname}: an address has no user, password or query", f"set {KEY_VARIABLE} in the environment"
            )
        return cls(base.rstrip("/"), model or None)

    @property
    def root(self) -> str:
        """Where the server's own endpoints are, beside the API's."""
        return self.base.removesuffix("/v1")

    @property
    def host(self) -> str:
        return urlsplit(self.base).netloc

    @property
    def is_exposed(self) -> bool:
        """Whether what is sent can be read on the way: plain http to a host that is not in a private network."""
        parts = urlsplit(self.base)
        return parts.scheme == "http" and not _is_private(str(parts.hostname))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model on a server as the user wants it. `template` is the chat template, if the server shows none."""

    address: Address
    key: str | None = field(default=None, repr=False)
    template: str | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    context_size: int | None = None


def find_keys(
    addresses: Mapping[ModelRole, Address], variables: Mapping[ModelRole, str | None], environment: Mapping[str, str]
) -> dict[ModelRole, str]:
    """The key of each model, from the environment only: the variable that its pair names, else its role's, else the common one.

    The common key is for one server: UsageError if there are several and one of them would get it.
    """
    keys: dict[ModelRole, str] = {}
    for role, address in addresses.items():
        named, own = variables.get(role), f"ARBITRAGE_{role.upper()}_API_KEY"
        if named and not environment.get(named):
            raise UsageError(f"{named} is not set: the pair names it for the key of the {role}", f"export {named}=...")
        key = environment.get(named or "") or environment.get(own) or _common_key(addresses.values(), environment, own)
        if key and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise UsageError(f"the API key of the {role} ({address.host}) has characters that no key has", "set it again")
        if key:
            keys[role] = key
    return keys


def _common_key(addresses: Iterable[Address], environment: Mapping[str, str], own: str) -> str | None:
    key = environment.get(KEY_VARIABLE)
    if key and len({address.host for address in addresses}) > 1:
        raise UsageError(f"{KEY_VARIABLE} is set, and the models are on several servers", f"set {own} and its like instead")
    return key


def _is_private(host: str) -> bool:
    """Loopback and private addresses, and names without a dot or of a local network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan", ".localhost"))
    return address.is_private or address.is_loopback or address.is_link_local
