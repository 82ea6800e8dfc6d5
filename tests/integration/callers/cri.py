#!/usr/bin/python3
"""A client of the Container Runtime Interface, for want of crictl in Debian: one call a line of arguments.

cri.py SOCKET METHOD [FIELD=VALUE…] sends the method's request, with fields as JSON (a plain word is a string) and dots
between the names of nested ones, and prints the reply as JSON. Exit code 1, and the error's text, when it is refused.
"""

import json
import os
import subprocess
import sys

import grpc
from google.protobuf import json_format

HERE = os.path.dirname(os.path.abspath(__file__))
# Request and reply of each method; those that only carry an ID share a message with the same field.
METHODS = {
    "RunPodSandbox": ("RunPodSandboxRequest", "PodSandbox"),
    "StopPodSandbox": ("PodSandbox", "Empty"),
    "RemovePodSandbox": ("PodSandbox", "Empty"),
    "ListPodSandbox": ("Empty", "ListPodSandboxResponse"),
    "PodSandboxStatus": ("PodSandbox", "PodSandboxStatusResponse"),
    "CreateContainer": ("CreateContainerRequest", "Container"),
    "StartContainer": ("Container", "Empty"),
    "StopContainer": ("StopContainerRequest", "Empty"),
    "RemoveContainer": ("Container", "Empty"),
    "ContainerStatus": ("Container", "ContainerStatusResponse"),
    "UpdateContainerResources": ("UpdateContainerResourcesRequest", "Empty"),
    "ExecSync": ("ExecSyncRequest", "ExecSyncResponse"),
    "Attach": ("AttachRequest", "StreamResponse"),
    "PortForward": ("PortForwardRequest", "StreamResponse"),
    "ContainerStats": ("Container", "ContainerStatsResponse"),
}


def messages(place):
    """The module that protoc makes of cri.proto, made once in this directory."""
    if not os.path.exists(os.path.join(place, "cri_pb2.py")):
        subprocess.run(["protoc", "-I", HERE, "--python_out", place, "cri.proto"], check=True)
    sys.path.insert(0, place)
    import cri_pb2
    return cri_pb2


def request(fields):
    """A tree of dictionaries from FIELD=VALUE."""
    tree = {}
    for field in fields:
        path, value = field.split("=", 1)
        *parents, name = path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        try:
            place[name] = json.loads(value)
        except json.JSONDecodeError:
            place[name] = value
    return tree


def main():
    socket, method, *fields = sys.argv[1:]
    module = messages(os.path.dirname(socket))
    asked, answered = (getattr(module, name) for name in METHODS[method])
    message = json_format.ParseDict(request(fields), asked())
    with grpc.insecure_channel("unix://" + socket) as channel:
        call = channel.unary_unary(
            "/runtime.v1.RuntimeService/" + method,
            request_serializer=asked.SerializeToString,
            response_deserializer=answered.FromString,
        )
        try:
            reply = call(message, timeout=120)
        except grpc.RpcError as error:
            sys.exit(error.details())
    print(json_format.MessageToJson(reply, including_default_value_fields=True, preserving_proto_field_name=True))


if __name__ == "__main__":
    main()
