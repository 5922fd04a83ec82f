"""Which addresses of the network a tool may reach on behalf of a model: public ones, unless told otherwise.

The check is made where a socket is opened, on the address that it is opened to. A name that was harmless when somebody
looked, and resolves to something else a moment later, gains nothing; nor does an address in disguise.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, TypeAlias

from aworld.core.exceptions import ConfigError

Private: TypeAlias = bool | Iterable[str]
"""Which private addresses may be reached: none (False), all (True), or some, such as `["127.0.0.1", "10.2.0.0/16"]`."""

_SERVICES = frozenset({IPv4Address("168.63.129.16")})
"""Public addresses that answer only from inside: the host agent of Azure."""
_PROTOCOLS = IPv4Network("192.0.0.0/24")
"""Of the IETF; a metadata service of a cloud is among them. Python 3.11 takes some for public."""
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")


class PrivateAddressError(OSError):
    """A connection to an address that may not be reached was refused."""


class AddressPolicy:
    """Says which addresses may be reached, and opens sockets to no others. Raises `ConfigError` for a bad network."""

    def __init__(self, allow_private: Private = False) -> None:
        self._all = allow_private is True
        self._allowed: list[Any] = []
        if isinstance(allow_private, str):
            raise ConfigError(f"allow_private={allow_private!r}: give a list, such as [{allow_private!r}].")
        if not isinstance(allow_private, bool):
            try:
                self._allowed = [ip_network(entry) for entry in allow_private]
            except ValueError as error:
                raise ConfigError(f"allow_private: {error}; give addresses or networks.") from None

    def allows(self, address: str) -> bool:
        """Whether an address, as text, may be reached. What is no address may not."""
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return self._all or any(parsed in network for network in self._allowed) or _is_public(parsed)

    def check(self, address: str, host: str | None = None) -> None:
        """Raise `PrivateAddressError` for an address that may not be reached."""
        if not self.allows(address):
            named = address if host in (None, address) else f"{host} ({address})"
            raise PrivateAddressError(f"{named} is a private or reserved address, which may not be reached.")

    def open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for an address as `getaddrinfo` gives it. Raises `PrivateAddressError`."""
        family, kind, protocol, _, address = info
        self.check(address[0])
        return socket.socket(family=family, type=kind, proto=protocol)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        inner = _disguised(address)
        if inner is not None:
            return _is_public(inner)
        if address.is_site_local or address.is_reserved:
            return False
    elif address in _PROTOCOLS or address in _SERVICES:
        return False
    return address.is_global and not address.is_multicast


def _disguised(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address to which an IPv6 address leads: mapped, by 6to4, by Teredo, by NAT64, or the old compatible."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
