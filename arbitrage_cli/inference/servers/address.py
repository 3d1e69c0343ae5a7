"""Parses model addresses such as `http://host:port/v1#model`, and finds their API keys. Sends nothing."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import field
from urllib.parse import urlsplit

from arbitrage_cli.errors import UsageError
from arbitrage_cli.types import Fields, ModelRole, ServerKind, frozen

ADDRESS_EXAMPLE = "use an address such as http://gpu-box:8000/v1 or http://gpu-box:8000/v1#Qwen/Qwen3-32B"
SHARED_KEY_VARIABLE = "ARBITRAGE_API_KEY"
PLAIN_HOST = re.compile(r"[a-z0-9._-]+")  # `urlsplit` returns lower case


@frozen
class Address:
    """The base URL of an API and a model name, which is optional if the server has only one model."""

    base: str
    model: str | None = None

    @classmethod
    def parse(cls, source: str) -> "Address":
        """Parse `URL#model`.

        Raises UsageError if the URL is invalid, contains a user, password or query, or has a host that the HTTP client would
        rewrite, because such a host could name another server than it seems to.
        """
        base, _, model = source.partition("#")
        try:
            parts = urlsplit(base)
            is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # invalid port or IPv6 address
            is_address = False
        if not is_address or not base.isprintable() or " " in base:
            raise UsageError(f"invalid server address '{base.partition('?')[0].rpartition('@')[2]}'", ADDRESS_EXAMPLE)
        if parts.username is not None or parts.password is not None or parts.query:
            message = f"{parts.hostname}: an address must not contain a user, password or query"
            raise UsageError(message, f"set the environment variable {SHARED_KEY_VARIABLE}")
        if not (_is_ip_address(str(parts.hostname)) or PLAIN_HOST.fullmatch(str(parts.hostname))):
            message = f"{parts.hostname}: a host may contain only ASCII letters, digits, '.', '-' and '_'"
            raise UsageError(message, "write the ASCII form of an international name, such as xn--bcher-kva.example")
        return cls(base.rstrip("/"), model or None)

    def url(self, path: str) -> str:
        """Return the URL of a path of the API or, if the path begins with a slash, of a path beside the API."""
        return self.base.removesuffix("/v1") + path if path.startswith("/") else f"{self.base}/{path}"

    @property
    def host(self) -> str:
        return urlsplit(self.base).netloc

    @property
    def is_private(self) -> bool:
        return is_private(str(urlsplit(self.base).hostname))

    @property
    def is_exposed(self) -> bool:
        return self.base.startswith("http:") and not self.is_private


@frozen
class ServedSource:
    """A model on a server.

    `server` says what is behind the address if the server does not say so itself. `template` replaces its chat template.
    """

    address: Address
    key: str | None = field(default=None, repr=False)
    server: ServerKind | None = None
    template: str | None = None
    template_variables: Fields = field(default_factory=dict)
    context_size: int | None = None


def key_variable(role: str) -> str:
    """Return the environment variable of a role's API key, for example ARBITRAGE_TARGET_API_KEY."""
    return f"ARBITRAGE_{role.upper()}_API_KEY"


def variable_of_key(role: ModelRole, named: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the variable from which `find_keys` takes a role's API key, if any is set. A pair may have `named` one."""
    return next((name for name in (named, key_variable(role), SHARED_KEY_VARIABLE) if name and environment.get(name)), None)


def find_keys(
    addresses: Mapping[ModelRole, Address], variables: Mapping[ModelRole, str | None], environment: Mapping[str, str]
) -> dict[ModelRole, str]:
    """Return each role's API key.

    The environment variable named in the pair takes precedence, followed by the role's variable and the shared variable.

    Raises UsageError if the environment variable that the pair names is not set, if a key is invalid or would be sent
    unencrypted, or if several servers would receive the shared key.
    """
    keys: dict[ModelRole, str] = {}
    shared = environment.get(SHARED_KEY_VARIABLE)
    are_several = len({address.host for address in addresses.values()}) > 1
    for role, address in addresses.items():
        named = variables.get(role)
        own = key_variable(role)
        if named and not environment.get(named):
            raise UsageError(f"environment variable {named} for the API key of the {role} is not set", f"export {named}=...")
        key = environment.get(named or "") or environment.get(own)
        if not key and shared and are_several:
            raise UsageError(f"{SHARED_KEY_VARIABLE} is set, but the models are on several servers", f"set {own} instead")
        key = key or shared
        if key and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise UsageError(f"the API key of the {role} ({address.host}) contains invalid characters", "set it again")
        if key and address.is_exposed:
            raise UsageError(f"the API key of the {role} would be sent to {address.host} unencrypted", "use https")
        if key:
            keys[role] = key
    return keys


def is_private(host: str) -> bool:
    """Return whether a host is this machine or part of a private network."""
    if _is_ip_address(host):
        return ipaddress.ip_address(host).is_private
    is_number = re.fullmatch(r"\d+|0x[0-9a-f]+", host)  # an IP address, such as 134744072 for 8.8.8.8
    return (not is_number and "." not in host) or host.endswith((".local", ".internal", ".lan", ".localhost"))


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
