"""Which requests the server answers, and whose they are.

The pages of other sites can send requests to this machine through a visitor's browser, which gives
their site as the Origin. Or they let their own name lead here (DNS rebinding): it is then the Host.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable

from vqd_jax.core.errors import UserError


def host_names(names: Iterable[str]) -> frozenset[str]:
    """The names in lower case. UserError for one that no Host header can have."""
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII) and not _is_address(name):
            raise UserError(
                "--allow_host takes the name of a host, such as demo.example.org, without http:// "
                f"and port, got {name!r:.80}"
            )
    return frozenset(name.lower() for name in names)


def refusal(host: str, origin: str, fetch_site: str, allowed: frozenset[str]) -> str:
    """Why a request with these headers is not answered; empty if it is.

    Its Host must be an IP address, this machine or `allowed`. Its Origin must be that Host or
    `allowed`, unless the browser says (Sec-Fetch-Site) that the page is of the server's origin: a
    proxy may have replaced the Host.
    """
    machine = socket.gethostname().lower()
    short = machine.partition(".")[0]
    own = {"localhost", machine, short, f"{short}.local"}
    hint = "if it is yours, start vqd demo with --allow_host=NAME"
    name = _name(host)
    if name not in allowed | own and not _is_address(name):
        return f"this server does not answer to the name {name!r:.80}; {hint}"
    same_origin = origin in ("", f"http://{host}", f"https://{host}")
    if same_origin or fetch_site == "same-origin":
        return ""
    if _name(origin.partition("://")[2]) in allowed:
        return ""
    return f"requests from the site {origin!r:.80} are not accepted; {hint}"


def client(address: str) -> str:
    """The client with an IP address; in IPv6 a whole network of 64 bits is one client."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False)
    return str(ip)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is reachable from this machine only."""
    return host == "localhost" or _is_address(host) and ipaddress.ip_address(host).is_loopback


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return re.sub(r":[0-9]*$", "", host).removeprefix("[").removesuffix("]").lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
