"""Stands in for the supervisor: hands its socket to the test at the other end of argv[1], then lives until told to end.

One byte from the test is the exit status, except 254: start a process that will outlive this one.
The end of the connection is the end of the test.
"""

import os
import socket
import subprocess
import sys

connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
socket.send_fds(connection, [str(os.getpid()).encode()], [int(os.environ["AGENTOS_LAUNCHER_FD"])])
os.close(int(os.environ["AGENTOS_LAUNCHER_FD"]))
answer = connection.recv(1)
if answer == b"\xfe":
    stray = subprocess.Popen(["sleep", "600"])
    connection.send(str(stray.pid).encode())
    answer = connection.recv(1)
sys.exit(answer[0] if answer else 0)
