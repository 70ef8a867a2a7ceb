"""Who answers at an address, found out in a moment: nobody, a stranger, a head that knows our token, of which versions.

One gRPC call each to Ray's head service. Ray itself retries for 20 s and longer and then gives no reason. The token is
sent only to an address that asked for one in the way that was expected: with TLS, or without.
"""

import json
import platform
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import grpc
from ray.core.generated import gcs_pb2, gcs_service_pb2

from cluster.settings import TLS_FILES, Address
from mint.core.errors import MintError

SECONDS = 5.0  # for one answer
LABELS = {"mint": "mint-mlx", "mlx": "mlx", "mlx-lm": "mlx-lm"}  # what a node says of itself: label and package
_METADATA = ("/ray.rpc.InternalKVGcsService/InternalKVGet", b"cluster", b"CLUSTER_METADATA")
_NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_OPTIONS = (("grpc.enable_http_proxy", 0),)


@dataclass(frozen=True, slots=True)
class Node:
    """A node as the head knows it."""

    node_id: str
    address: str
    port: int
    hostname: str
    is_alive: bool
    is_head: bool
    labels: Mapping[str, str]

    def labels_of_versions(self) -> dict[str, str]:
        """The versions that the node was started with."""
        return {label: self.labels[label] for label in LABELS if label in self.labels}


@dataclass(frozen=True, slots=True)
class Head:
    """A head that accepted our token, its versions, and the nodes that it knows."""

    address: Address
    versions: Mapping[str, str]
    nodes: tuple[Node, ...]

    def living(self) -> tuple[Node, ...]:
        """The nodes that are there."""
        return tuple(node for node in self.nodes if node.is_alive)

    def has(self, own: str) -> bool:
        """Whether this machine, whose address is `own`, is one of the nodes.

        Ray believes a node that was killed to be alive for a minute; whether one is here, its port tells.
        """
        return any(node.address == own and _opens(own, node.port) for node in self.living())

    def need_a_node_here(self) -> None:
        """Raise `MintError` unless one of the living nodes is this machine: a driver needs one beside it."""
        living = self.living()
        if not any(is_here(node.address) and self.has(node.address) for node in living):
            raise MintError(
                f"{self.address}: this machine is no node of that cluster, the nodes are "
                f"{', '.join(node.address for node in living) or 'none'}; needed: mint cluster join {self.address} "
                "here, in another terminal, or the same command on one of the nodes"
            )


def own_versions() -> dict[str, str]:
    """The versions here that have to be those of the head."""
    found = {"ray": _version("ray"), "python": platform.python_version()}
    return found | {label: _version(package) for label, package in LABELS.items()}


def is_here(address: str) -> bool:
    """Whether an address is one of this machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def knock(address: Address, *, token: Path, tls: Path | None = None) -> Head:
    """The head at `address`, of the same versions as here; raises `MintError` that names what is not so."""
    listening(address)
    _expect_tls(address, tls)
    with _channel(address, tls) as channel:
        _expect_refusal(address, channel)
        secret = [("authorization", f"Bearer {token.read_text().strip()}")]
        head = _ask(address, channel, secret, token)
    compare_versions(address, head.versions, own_versions())
    return head


def compare_versions(address: Address, found: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise `MintError` with the command to install, for the first version here that is not that of the head."""
    for name, theirs in found.items():
        if here.get(name, theirs) == theirs:
            continue
        cure = {
            "python": f"the same Python, such as: uv python install {theirs}; then a new environment with it",
            "mint": f"pip install 'mint-mlx[cluster]=={theirs}'",
        }.get(name, f"pip install '{name}=={theirs}'")
        raise MintError(
            f"{address} has {name} {theirs}, this machine has {here[name]}; all nodes need the same. Here: {cure}"
        )


def listening(address: Address) -> None:
    """Raise `MintError` unless somebody listens at an address."""
    try:
        socket.create_connection((address.host, address.port), timeout=SECONDS).close()
    except ConnectionRefusedError as error:
        raise MintError(
            f"nobody listens at {address}; needed: mint cluster up --head --address {address.host} on that machine, "
            "and its port"
        ) from error
    except socket.gaierror as error:
        raise MintError(f"{address.host} is no known host ({error.strerror}); needed: its IP address") from error
    except OSError as error:
        raise MintError(
            f"{address} does not answer ({error.strerror or 'no answer'}); needed: a network between both machines, no "
            "firewall on that port, and on a Mac the permission for the local network (mint cluster doctor)"
        ) from error


def _expect_tls(address: Address, tls: Path | None) -> None:
    """Raise `MintError` when one side speaks TLS and the other does not, or when the certificates are strangers."""
    spoken = _speaks_tls(address)
    if tls is None and spoken:
        raise MintError(
            f"{address} speaks TLS; needed: --tls for mint cluster join, tls://{address} for --cluster, and the "
            "certificates of this machine (mint cluster certs)"
        )
    if tls is not None and not spoken:
        raise MintError(f"{address} speaks no TLS; needed: --tls for mint cluster up there, or no TLS here")
    if tls is None:
        return
    context = ssl.create_default_context(cafile=str(tls / TLS_FILES["RAY_TLS_CA_CERT"]))
    context.load_cert_chain(tls / TLS_FILES["RAY_TLS_SERVER_CERT"], tls / TLS_FILES["RAY_TLS_SERVER_KEY"])
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secure,
        ):
            secure.recv(1)  # with TLS 1.3 a client learns that its own certificate was refused when it reads
    except (ssl.SSLError, ConnectionResetError) as error:
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
        raise MintError(
            f"{address}: the certificates do not fit ({reason}); needed: the folders that one run of `mint cluster "
            f"certs` made for all machines, the one with {address.host} on the head; here {tls} is used"
        ) from error


def _opens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError:
        return False
    return True


def _speaks_tls(address: Address) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=SECONDS) as plain,
            context.wrap_socket(plain) as secure,
        ):
            return secure.version() is not None
    except (OSError, ssl.SSLError):
        return False


@contextmanager
def _channel(address: Address, tls: Path | None) -> Iterator[grpc.Channel]:
    if tls is None:
        channel = grpc.insecure_channel(str(address), options=_OPTIONS)
    else:
        root, key, certificate = (
            (tls / TLS_FILES[name]).read_bytes()
            for name in ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")
        )
        credentials = grpc.ssl_channel_credentials(root, key, certificate)
        channel = grpc.secure_channel(str(address), credentials, options=_OPTIONS)
    with channel:
        yield channel


def _expect_refusal(address: Address, channel: grpc.Channel) -> None:
    """Raise `MintError` unless whoever listens is a Ray head that lets nobody in without a token."""
    try:
        _call(channel, _ALIVE, gcs_service_pb2.CheckAliveRequest(), gcs_service_pb2.CheckAliveReply, [])
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return
        raise MintError(
            f"what listens at {address} is no head of a Ray cluster, or one that hangs ({error.code().name.lower()}); "
            "needed: the address that mint cluster up printed"
        ) from error
    raise MintError(
        f"{address} lets anybody in without a token; needed: a head that was started with mint cluster up, which "
        "always asks for one. Nothing was sent there"
    )


def _ask(address: Address, channel: grpc.Channel, secret: list[tuple[str, str]], token: Path) -> Head:
    method, namespace, key = _METADATA
    request = gcs_service_pb2.InternalKVGetRequest(namespace=namespace, key=key)
    try:
        metadata = _call(channel, method, request, gcs_service_pb2.InternalKVGetReply, secret)
        nodes = _call(
            channel, _NODES, gcs_service_pb2.GetAllNodeInfoRequest(), gcs_service_pb2.GetAllNodeInfoReply, secret
        )
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise MintError(
                f"{address}: token rejected; {token} is not the token of that cluster. Copy the head's token over it "
                "(mint cluster up says where it lies) and chmod 600 it"
            ) from error
        raise MintError(f"{address}: the head does not answer ({error.code().name.lower()})") from error
    found = tuple(_node(info) for info in nodes.node_info_list)
    if not metadata.value or not any(node.is_alive and node.is_head for node in found):
        raise MintError(f"{address}: the head has not started yet; try again in a few seconds")
    told = json.loads(metadata.value)
    head = next(node for node in found if node.is_alive and node.is_head)
    versions = {"ray": told["ray_version"], "python": told["python_version"], **head.labels_of_versions()}
    return Head(address, versions, found)


def _call(channel: grpc.Channel, method: str, request: Any, reply: Any, metadata: list[tuple[str, str]]) -> Any:
    call = channel.unary_unary(
        method, request_serializer=lambda message: message.SerializeToString(), response_deserializer=reply.FromString
    )
    return call(request, metadata=metadata, timeout=SECONDS)


def _node(info: Any) -> Node:
    return Node(
        info.node_id.hex(),
        info.node_manager_address,
        info.node_manager_port,
        info.node_manager_hostname,
        info.state == gcs_pb2.GcsNodeInfo.ALIVE,
        info.is_head_node,
        dict(info.labels),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
