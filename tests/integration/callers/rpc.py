"""What cri.py and tasks.py share: one gRPC call, told and answered as JSON."""

import json
import os
import subprocess
import sys

import grpc
from google.protobuf import json_format

HERE = os.path.dirname(os.path.abspath(__file__))


def messages(place, proto):
    """The module that protoc makes of this file, made once in this directory."""
    name = proto.removesuffix(".proto") + "_pb2"
    if not os.path.exists(os.path.join(place, name + ".py")):
        subprocess.run(["protoc", "-I", HERE, "--python_out", place, proto], check=True)
    sys.path.insert(0, place)
    return __import__(name)


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


def call(proto, service, methods, metadata=()):
    """The command line's call. `methods` has the names of each one's request and reply."""
    socket, method, *fields = sys.argv[1:]
    module = messages(os.path.dirname(socket), proto)
    asked, answered = (getattr(module, name) for name in methods[method])
    message = json_format.ParseDict(request(fields), asked())
    with grpc.insecure_channel("unix://" + socket) as channel:
        stub = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=asked.SerializeToString,
            response_deserializer=answered.FromString,
        )
        try:
            reply = stub(message, timeout=120, metadata=metadata)
        except grpc.RpcError as error:
            sys.exit(error.details())
    print(json_format.MessageToJson(reply, including_default_value_fields=True, preserving_proto_field_name=True))
