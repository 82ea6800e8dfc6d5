#!/usr/bin/python3 -B
"""A client of the Container Runtime Interface, for want of crictl in Debian: one call a line of arguments.

cri.py SOCKET METHOD [FIELD=VALUE…] sends the method's request, with fields as JSON (a plain word is a string) and dots
between the names of nested ones, and prints the reply as JSON. Exit code 1, and the error's text, when it is refused.
"""

import rpc

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

if __name__ == "__main__":
    rpc.call("cri.proto", "runtime.v1.RuntimeService", METHODS)
