#!/usr/bin/python3 -B
"""A client of containerd's Tasks service: ctr asks for the task's state before each call, this calls the one and nothing else.

tasks.py SOCKET METHOD [FIELD=VALUE…], as cri.py; the namespace is in CONTAINERD_NAMESPACE.
"""

import os

import rpc

METHODS = {
    "Create": ("CreateTaskRequest", "Empty"),
    "Start": ("Process", "Empty"),
    "Delete": ("Process", "Empty"),
    "DeleteProcess": ("Process", "Empty"),
    "Get": ("Process", "GetResponse"),
    "Kill": ("KillRequest", "Empty"),
    "Exec": ("ExecProcessRequest", "Empty"),
    "ResizePty": ("ResizePtyRequest", "Empty"),
    "CloseIO": ("CloseIORequest", "Empty"),
    "Pause": ("Process", "Empty"),
    "Resume": ("Process", "Empty"),
    "ListPids": ("Process", "Empty"),
    "Update": ("UpdateTaskRequest", "Empty"),
    "Metrics": ("MetricsRequest", "Empty"),
    "Wait": ("Process", "Empty"),
}

if __name__ == "__main__":
    rpc.call("tasks.proto", "containerd.services.tasks.v1.Tasks", METHODS,
             [("containerd-namespace", os.environ["CONTAINERD_NAMESPACE"])])
