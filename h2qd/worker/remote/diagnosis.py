"""What the HTTP library raises, as what happened to a server: one `RemoteError` each, in words that hold no secret.

The library's exceptions quote what was sent, so none of them goes on from here. Called by `transport`.
"""

import os
import ssl

import httpcore2

from h2qd.wire.names import shown
from h2qd.wire.workers import RemoteTarget
from h2qd.worker.remote.address import AddressRefusedError
from h2qd.worker.remote.errors import RemoteError, broken_off, nonsense


def diagnosed(error: Exception, name: str, target: RemoteTarget) -> Exception:
    """`error` of a request to the server called `name`. One that is not the library's is our defect, and stays."""
    match error:
        case RemoteError():
            return error
        case AddressRefusedError():
            text = f"cannot connect to {name}: its address is link-local or a metadata service's"
            return RemoteError("remote_failed", f"{text} (private_addresses would allow it)")
        case httpcore2.ConnectTimeout():
            return broken_off(f"cannot connect to {name}: no answer in {target.connect_s:g} s")
        case httpcore2.ConnectError():
            return _not_connected(name, error)
        case httpcore2.TimeoutException() | TimeoutError():
            return broken_off(f"{name} did not answer in time ({target.read_s:g} s)")
        case httpcore2.NetworkError():
            return broken_off(f"the connection to {name} broke", again=True)
        case httpcore2.ProxyError():
            return broken_off(f"the proxy did not connect to {name}: {shown(str(error))}")
        case httpcore2.ProtocolError():
            return _not_http(name, error)
        case _:
            return error


def _not_http(name: str, error: httpcore2.ProtocolError) -> RemoteError:
    if isinstance(error, httpcore2.LocalProtocolError):
        return RemoteError("internal", "a request was not valid HTTP")
    text = str(error)
    if "disconnected" in text:
        return broken_off(f"{name} closed the connection without an answer", again=True)
    if "closed connection" in text:
        return broken_off(f"{name} closed the connection in the middle of an answer")
    return nonsense(f"{name} breaks HTTP: {shown(text)}")


def _not_connected(name: str, error: BaseException) -> RemoteError:
    """The reason is at the bottom of what the libraries wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RemoteError("remote_failed", f"cannot trust {name}: {shown(cause.verify_message)}")
        if isinstance(cause, ssl.SSLError):
            return RemoteError("remote_failed", f"cannot speak TLS to {name}: {shown(cause.reason or 'it failed')}")
        if isinstance(cause, OSError) and cause.strerror:
            why = (
                os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
            )  # a resolver's: below 0
            return broken_off(f"cannot connect to {name}: {why}", again=True)
        cause = cause.__cause__ or next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
    return broken_off(f"cannot connect to {name}", again=True)
