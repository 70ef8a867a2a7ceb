"""Probes an address within seconds: is a Ray head there, does it accept our token, which versions does it run?

One gRPC call each to Ray's head service. Ray itself retries for 20 s and longer and then gives no reason. The token is
sent only to an address that asked for one in the expected way: with TLS, or without.
"""

import json
import platform
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from ray.core.generated import gcs_pb2, gcs_service_pb2
from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub, NodeInfoGcsServiceStub

from cluster.settings import TLS_AUTHORITY, TLS_CERTIFICATE, TLS_KEY, Address, Secrets, installed_version
from mint.core.errors import MintError
from mint.core.files import read_text
from mint.core.records import reading

SECONDS = 5.0  # for one answer
LABELS = {"mint": "mint-mlx", "mlx": "mlx", "mlx-lm": "mlx-lm"}  # of a node: label and package
_METADATA = {"namespace": b"cluster", "key": b"CLUSTER_METADATA"}
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
    versions: Mapping[str, str]  # that the node was started with, by label


@dataclass(frozen=True, slots=True)
class Head:
    """A head that accepted our token, its versions, and the nodes that it knows."""

    address: Address
    versions: Mapping[str, str]
    nodes: tuple[Node, ...]

    def living(self) -> tuple[Node, ...]:
        """The nodes that are alive."""
        return tuple(node for node in self.nodes if node.is_alive)

    def has(self, own: str) -> bool:
        """True if this machine, whose address is `own`, is one of the nodes.

        Ray lists a killed node as alive for a minute, so the port of the node is probed.
        """
        return any(node.address == own and not Address(own, node.port).trouble(SECONDS) for node in self.living())

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
    versions = {"ray": installed_version("ray"), "python": platform.python_version()}
    return versions | {label: installed_version(package) or "none" for label, package in LABELS.items()}


def is_here(address: str) -> bool:
    """True for an address of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def knock(address: Address, secrets: Secrets) -> Head:
    """The head at `address`, of the same versions as here; raises `MintError` that names the obstacle."""
    _expect_listener(address)
    _expect_tls(address, secrets)
    with _channel(address, secrets) as channel:
        _expect_refusal(address, channel)
        head = _ask(address, channel, secrets)
    compare_versions(address, head.versions)
    return head


def compare_versions(address: Address, versions: Mapping[str, str]) -> None:
    """Raise `MintError` with the command to install, for the first of the head's `versions` that differs here."""
    here = own_versions()
    for name, theirs in versions.items():
        if here.get(name, theirs) == theirs:
            continue
        cure = {
            "python": f"the same Python, such as: uv python install {theirs}; then a new environment with it",
            "mint": f"pip install 'mint-mlx[cluster]=={theirs}'",
        }.get(name, f"pip install '{name}=={theirs}'")
        raise MintError(
            f"{address} has {name} {theirs}, this machine has {here[name]}; all nodes need the same. Here: {cure}"
        )


def _expect_listener(address: Address) -> None:
    """Raise `MintError` unless some program listens at an address."""
    error = address.trouble(SECONDS)
    if isinstance(error, ConnectionRefusedError):
        raise MintError(
            f"nobody listens at {address}; needed: mint cluster up --head --address {address.host} on that machine, "
            "and its port"
        ) from error
    if isinstance(error, socket.gaierror):
        raise MintError(f"{address.host} is no known host ({error.strerror}); needed: its IP address") from error
    if error:
        raise MintError(
            f"{address} does not answer ({error.strerror or 'no answer'}); needed: a network between both machines, no "
            "firewall on that port, and on a Mac the permission for the local network (mint doctor)"
        ) from error


def _expect_tls(address: Address, secrets: Secrets) -> None:
    """Raise `MintError` when one side speaks TLS and the other does not, or when the certificates are strangers."""
    tls, spoken = secrets.tls, _speaks_tls(address)
    if tls is None and spoken:
        raise MintError(
            f"{address} speaks TLS; needed: --tls for mint cluster join, tls://{address} for --cluster, and the "
            "certificates of this machine (mint cluster certs)"
        )
    if tls is None:
        return
    if not spoken:
        raise MintError(f"{address} speaks no TLS; needed: --tls for mint cluster up there, or no TLS here")
    try:
        context = ssl.create_default_context(cafile=str(tls / TLS_AUTHORITY))
        context.load_cert_chain(tls / TLS_CERTIFICATE, tls / TLS_KEY)
        with _tls_connection(address, context) as connection:
            connection.recv(1)  # with TLS 1.3 a client learns that its own certificate was refused when it reads
    except (ssl.SSLError, ConnectionResetError) as error:
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
        raise MintError(
            f"{address}: the certificates do not fit ({reason}); needed: the folders that one run of `mint cluster "
            f"certs` made for all machines, the one with {address.host} on the head; here {tls} is used"
        ) from error


def _speaks_tls(address: Address) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with _tls_connection(address, context) as connection:
            return connection.version() is not None
    except OSError:
        return False


@contextmanager
def _tls_connection(address: Address, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((address.host, address.port), timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=address.host) as connection,
    ):
        yield connection


def _channel(address: Address, secrets: Secrets) -> grpc.Channel:
    if secrets.tls is None:
        return grpc.insecure_channel(str(address), options=_OPTIONS)
    files = [(secrets.tls / name).read_bytes() for name in (TLS_AUTHORITY, TLS_KEY, TLS_CERTIFICATE)]
    return grpc.secure_channel(str(address), grpc.ssl_channel_credentials(*files), options=_OPTIONS)


def _expect_refusal(address: Address, channel: grpc.Channel) -> None:
    """Raise `MintError` unless the listener is a Ray head that refuses a caller without a token."""
    try:
        NodeInfoGcsServiceStub(channel).CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=SECONDS)
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


def _ask(address: Address, channel: grpc.Channel, secrets: Secrets) -> Head:
    token = read_text(secrets.token, "a token").strip()
    call = {"metadata": [("authorization", f"Bearer {token}")], "timeout": SECONDS}
    try:
        request = gcs_service_pb2.InternalKVGetRequest(**_METADATA)
        metadata = InternalKVGcsServiceStub(channel).InternalKVGet(request, **call)
        answer = NodeInfoGcsServiceStub(channel).GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), **call)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise MintError(
                f"{address}: token rejected; {secrets.token} is not the token of that cluster. Copy the head's token "
                "over it (mint cluster up prints its path) and chmod 600 it"
            ) from error
        raise MintError(f"{address}: the head does not answer ({error.code().name.lower()})") from error
    nodes = tuple(map(_node, answer.node_info_list))
    head = next((node for node in nodes if node.is_alive and node.is_head), None)
    if not metadata.value or not head:
        raise MintError(f"{address}: the head has not started yet; try again in a few seconds")
    with reading(f"{address}: its versions cannot be read", "needed: a head that `mint cluster up` started"):
        record = json.loads(metadata.value)
        versions = {"ray": str(record["ray_version"]), "python": str(record["python_version"]), **head.versions}
    return Head(address, versions, nodes)


def _node(info: Any) -> Node:
    return Node(
        info.node_id.hex(),
        info.node_manager_address,
        info.node_manager_port,
        info.node_manager_hostname,
        info.state == gcs_pb2.GcsNodeInfo.ALIVE,
        info.is_head_node,
        {label: info.labels[label] for label in LABELS if label in info.labels},
    )
