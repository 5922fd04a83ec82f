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
_RESERVED = (IPv4Network("192.88.99.0/24"), IPv6Network("3fff::/20"))
"""Relays of 6to4 (RFC 7526), and documentation (RFC 9637), which Python 3.11 takes for public."""
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
"""The third quarter of an address that leads to the IPv4 address in the fourth (RFC 5214)."""
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
        return self._all or self._names(parsed) or _is_public(parsed)

    def _names(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether an address is among those that were named."""
        return any(address in network for network in self._allowed)

    def check(self, address: str, host: str | None = None) -> None:
        """Raise `PrivateAddressError` for an address that may not be reached."""
        if not self.allows(address):
            named = address if host in (None, address) else f"{host} ({address})"
            raise PrivateAddressError(f"{named} is a private or reserved address, which may not be reached.")

    def open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for an address as `getaddrinfo` gives it. Raises `PrivateAddressError`."""
        family, kind, protocol, _, address = info
        self.check(address[0])
        if not self._all and not self._names(ip_address(address[0].partition("%")[0])) and _is_ours(family, address):
            raise PrivateAddressError(f"{address[0]} is an address of this machine, which may not be reached.")
        return socket.socket(family=family, type=kind, proto=protocol)


def _is_ours(family: int, address: tuple[Any, ...]) -> bool:
    """Whether an address is one of this machine, however public: to these the kernel talks from the same address.

    It says so by the look-up that a TCP connection will have too; connecting a UDP socket sends nothing.
    """
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False  # there is no way to it
        return probe.getsockname()[0] == probe.getpeername()[0]


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
            return False
        inner = _disguised(address)
        if inner is not None:
            return _is_public(inner)
        if address.is_site_local or address.is_reserved:
            return False
    elif address in _PROTOCOLS or address in _SERVICES:
        return False
    if any(address in network for network in _RESERVED):
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
