"""A suite on the pretended QEMU, for programs that look at Belljar from outside."""

import os
import subprocess
from pathlib import Path

# The smallest kernel: an ELF header and the text by which a kernel is known.
KERNEL = (b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\x02\0\x3e\0\x01").ljust(52, b"\0") + b"\x40"
KERNEL = (KERNEL.ljust(512, b"\0") + b"Linux version 6.1.0-fake (fake@fake) (gcc) #1 SMP PREEMPT_DYNAMIC fake\n\0").ljust(4096, b"\0")


class Suite:
    """Test files (names and shell text) in a directory of their own, and Belljar to run them with."""

    def __init__(self, place, belljar, fake_qemu, tests, more=""):
        place = Path(place)
        self.workspace, self.belljar = place / "workspace", str(belljar)
        (self.workspace / "t").mkdir(parents=True)
        (place / "rootfs/bin").mkdir(parents=True)
        (place / "rootfs/bin/sh").write_text("")
        (place / "vmlinux").write_bytes(KERNEL)
        for name, text in tests:
            path = self.workspace / "t" / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        guest = '[guests.g]\nkernel = "../vmlinux"\nrootfs = "../rootfs"\n'
        suite = f'[[suites]]\nname = "s"\ntests = ["t/*"]\nguests = ["g"]\n{more}'
        (self.workspace / "belljar.toml").write_text(f"{guest}\n{suite}")
        own = {"HOME": "home", "XDG_CACHE_HOME": "cache", "XDG_STATE_HOME": "state", "TMPDIR": "tmp"}
        self.env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "BELLJAR_QEMU": str(fake_qemu)}
        # What looks at Belljar from outside looks at guests that boot.
        self.env["BELLJAR_TEMPLATES"] = "off"
        for name, directory in own.items():
            (place / directory).mkdir()
            self.env[name] = str(place / directory)

    def command(self, *words):
        """`belljar test`, on a host that has room for everything."""
        return [self.belljar, "test", "--accel", "tcg", "--max-cpus", "1000", "--max-memory", "1000GiB", *words]

    def call(self, command):
        """Runs a command to its end; its exit code is the caller's to judge."""
        return subprocess.run(command, cwd=self.workspace, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
