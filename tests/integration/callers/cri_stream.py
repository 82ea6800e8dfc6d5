#!/usr/bin/python3
"""The other half of the CRI's Attach and PortForward, whose replies name a URL: a client of the kubelet's WebSocket protocol there.

cri_stream.py URL OUTPUT EXPECTED sends standard input on channel 0, and prints what comes on channel OUTPUT until that has EXPECTED in
it. Exit code 1 when the stream ends before.
"""

import base64
import os
import socket
import struct
import sys
from urllib.parse import urlparse


class Stream:
    """RFC 6455, as far as it takes; a message's first byte is its channel (v4.channel.k8s.io)."""

    def __init__(self, url):
        place = urlparse(url)
        self.socket = socket.create_connection((place.hostname, place.port), timeout=60)
        self.input = self.socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nOrigin: http://{place.netloc}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n".encode()
        )
        lines = list(iter(self.input.readline, b"\r\n"))
        if b" 101 " not in lines[0]:
            sys.exit(f"{url}: {lines[0].decode().strip()}")

    def send(self, channel, data):
        message, mask = bytes([channel]) + data, os.urandom(4)
        head = struct.pack("!BBH", 0x82, 0x80 | 126, len(message))
        self.socket.sendall(head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(message)))

    def receive(self):
        """Channel and data of the next message; None at the end."""
        head = self.input.read(2)
        if len(head) < 2:
            return None
        length = head[1] & 0x7F
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self.input.read(size), "big")
        message = self.input.read(length)
        if head[0] & 0x0F == 8:
            return None
        return (message[0], message[1:]) if message else (0, b"")


def main():
    url, output, expected = sys.argv[1:]
    stream = Stream(url)
    stream.send(0, sys.stdin.buffer.read())
    came = b""
    while expected.encode() not in came:
        message = stream.receive()
        if message is None:
            sys.exit(f"the stream has ended; all that came is {came!r}")
        channel, data = message
        if channel == int(output):
            came += data
    sys.stdout.buffer.write(came)


if __name__ == "__main__":
    main()
