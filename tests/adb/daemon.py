"""The device side of adb in Python, for the real client to talk to: a phone's adbd as far as clients need it.

It listens on this machine only, runs shell commands with the phone's own folders mapped into one folder here, and fails on demand.
Each stream has a thread of its own. Real daemons answer a CLSE with a CLSE; so does this one.

Source: the protocol is that of AOSP packages/modules/adb: protocol.txt, OVERVIEW.TXT, SYNC.TXT, shell_service.h
"""

from __future__ import annotations

import os
import queue
import shlex
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (int.from_bytes(word, "little") for word in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE"))
VERSION = 0x01000001  # payloads without check sums
MAX_PAYLOAD = 256 * 1024
BANNER = b"device::ro.product.name=oriole;ro.product.model=Pixel 6;ro.product.device=oriole;features=shell_v2,cmd,stat_v2,fixed_push_mkdir"
TOKEN, TOKEN_BYTES = 1, 20

#: first byte of a packet of the second shell protocol
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)

#: paths of the phone that lie in its folder here
MAPPED = (
    b"/data/local/tmp",
    b"/sdcard",
    b"/sys/",
    b"/proc/cpuinfo",
    b"/proc/meminfo",
    b"/proc/loadavg",
    b"/proc/uptime",
    b"/proc/device-tree",
    b"/etc/os-release",
)


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        unauthorized: no key is good enough.
        programs: name of a program -> what it says before it fails with exit code 1.
        slow: part of a shell command -> seconds before it runs.
        push: reason for which files can't be written, "" for none.
        lost_at: (part of a shell command, how many of those still work): then the connection is cut, and stays so.
    """

    unauthorized: bool = False
    programs: dict[str, str] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    push: str = ""
    lost_at: tuple[str, int] | None = None


class Daemon:
    """A phone's adbd on a free port of this machine.

    Args:
        root: folder with what the phone's own paths hold; see MAPPED.
        environment: of the commands it runs.
        install: what a file becomes when it arrives, so that programs for another processor can be played.
    """

    def __init__(self, root: Path, environment: Mapping[str, str], install: Callable[[bytes], bytes]) -> None:
        self.root = root
        self.install = install
        self.environment = dict(environment)
        self.faults = Faults()
        self.commands: list[str] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut every connection, take no more."""
        for connection in (self._listener, *self._sockets):
            with suppress(OSError):  # the other side may have been faster
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def mapped(self, text: bytes) -> bytes:
        for path in MAPPED:
            text = text.replace(path, os.fsencode(self.root) + path)
        return text

    def unmapped(self, text: bytes) -> bytes:
        return text.replace(os.fsencode(self.root), b"")

    def path(self, device_path: bytes) -> Path:
        return Path(os.fsdecode(self.mapped(device_path)))

    def count(self, command: str) -> bool:
        """Note a shell command; False when the phone is lost at it."""
        self.commands.append(command)
        if self.faults.lost_at is not None and self.faults.lost_at[0] in command:
            part, left = self.faults.lost_at
            self.faults.lost_at = part, left - 1
            if left <= 0:
                self.close()
                return False
        return True

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(connection)
            threading.Thread(target=Transport(self, connection).serve, daemon=True).start()


class Closed(Exception):
    """The other side closed the stream."""


class Transport:
    """One connection of a client's server."""

    def __init__(self, daemon: Daemon, connection: socket.socket) -> None:
        self.daemon = daemon
        self._connection = connection
        self._sending = threading.Lock()
        self._streams: dict[int, Stream] = {}

    def serve(self) -> None:
        try:
            while True:
                command, first, second, length, _, _ = struct.unpack("<6I", self._read(24))
                self._handle(command, first, second, self._read(length))
        except OSError:
            pass  # the client's server is gone
        finally:
            for stream in list(self._streams.values()):
                stream.end()

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(data), 0, command ^ 0xFFFFFFFF)
        with self._sending:
            self._connection.sendall(head + data)

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._connection.recv(count - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return bytes(data)

    def _handle(self, command: int, first: int, second: int, data: bytes) -> None:
        if command in (CNXN, AUTH):
            if self.daemon.faults.unauthorized:
                self.send(AUTH, TOKEN, 0, bytes(TOKEN_BYTES))
            else:
                self.send(CNXN, VERSION, MAX_PAYLOAD, BANNER)
        elif command == OPEN:
            number = max(self._streams, default=0) + 1
            self._streams[number] = Stream(self, number, first)
            self.send(OKAY, number, first)
            threading.Thread(target=self._streams[number].serve, args=(data.rstrip(b"\0"),), daemon=True).start()
        elif second in self._streams:
            stream = self._streams[second]
            if command == OKAY:
                stream.written.put(True)
            elif command == WRTE:
                stream.incoming.put(data)
                self.send(OKAY, second, first)
            elif command == CLSE:
                stream.end()
                stream.close()
                del self._streams[second]


class Stream:
    """One service that a client asked for."""

    def __init__(self, transport: Transport, local: int, remote: int) -> None:
        self.incoming: queue.Queue[bytes | None] = queue.Queue()
        self.written: queue.Queue[bool] = queue.Queue()
        self._transport = transport
        self._daemon = transport.daemon
        self._local, self._remote = local, remote
        self._buffer = b""
        self._writing = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False

    def serve(self, service: bytes) -> None:
        kind, _, argument = service.partition(b":")
        run: Callable[[bytes], None] | None = {
            b"shell": self._shell_2 if b",v2" in kind else self._shell_1,
            b"exec": self._shell_1,
            b"sync": self._sync,
        }.get(kind.partition(b",")[0])
        try:
            if run is not None:
                run(argument)
        except (Closed, OSError):
            pass  # the client is gone
        finally:
            with suppress(OSError):
                self.close()

    def end(self) -> None:
        """The client sends nothing more, and takes nothing."""
        self.incoming.put(None)
        self.written.put(False)

    def close(self) -> None:
        with self._closing:
            if not self._closed:
                self._closed = True
                self._transport.send(CLSE, self._local, self._remote)

    def write(self, data: bytes) -> None:
        with self._writing:
            for at in range(0, len(data), MAX_PAYLOAD):
                self._transport.send(WRTE, self._local, self._remote, data[at : at + MAX_PAYLOAD])
                if not self.written.get():
                    raise Closed

    def read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            part = self.incoming.get()
            if part is None:
                raise Closed
            self._buffer += part
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    # shells

    def _start(self, command: bytes, err: int) -> subprocess.Popen[bytes]:
        """The process of a shell command; programs that should fail are functions of the shell."""
        text = command.decode()
        if not self._daemon.count(text):
            raise Closed
        faults = self._daemon.faults
        time.sleep(next((s for part, s in faults.slow.items() if part in text), 0))
        failing = "".join(f"{program}() {{ echo {shlex.quote(said)} >&2; return 1; }}\n" for program, said in faults.programs.items())
        return subprocess.Popen(
            ["sh", "-c", failing.encode() + self._daemon.mapped(command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            env=self._daemon.environment,
            start_new_session=True,
        )

    def _shell_1(self, command: bytes) -> None:
        """Both outputs as they come; no exit code."""
        process = self._start(command, subprocess.STDOUT)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        while data := process.stdout.read1(MAX_PAYLOAD):
            self.write(data)
        process.wait()

    def _shell_2(self, command: bytes) -> None:
        """Outputs apart, in packets, and an exit code."""
        process = self._start(command, subprocess.PIPE)
        pumps = [
            threading.Thread(target=self._pump, args=(pipe, kind), daemon=True)
            for pipe, kind in ((process.stdout, STDOUT), (process.stderr, STDERR))
        ]
        for pump in pumps:
            pump.start()
        threading.Thread(target=self._feed, args=(process,), daemon=True).start()
        for pump in pumps:
            pump.join()
        self._packet(EXIT, bytes([process.wait() & 0xFF]))

    def _pump(self, pipe, kind: int) -> None:
        try:
            for line in pipe:
                self._packet(kind, self._daemon.unmapped(line))
        except (Closed, OSError):
            pass  # the command goes on, as on a phone

    def _feed(self, process) -> None:
        try:
            while True:
                kind, length = struct.unpack("<BI", self.read(5))
                data = self.read(length)
                if kind == STDIN:
                    process.stdin.write(self._daemon.mapped(data))
                elif kind == CLOSE_STDIN:
                    break
        except (Closed, OSError):
            pass
        with suppress(BrokenPipeError):  # it reads no more
            process.stdin.close()

    def _packet(self, kind: int, data: bytes) -> None:
        self.write(struct.pack("<BI", kind, len(data)) + data)

    # files

    def _sync(self, _: bytes) -> None:
        requests: dict[bytes, Callable[[bytes], None]] = {
            b"STAT": self._stat_1,
            b"STA2": lambda p: self._stat_2(b"STA2", p, os.stat),
            b"LST2": lambda p: self._stat_2(b"LST2", p, os.lstat),
            b"LIST": self._list,
            b"SEND": self._receive,
            b"RECV": self._send,
        }
        while True:
            name, length = struct.unpack("<4sI", self.read(8))
            if name == b"QUIT":
                return
            requests[name](self.read(length))

    def _stat_1(self, path: bytes) -> None:
        try:
            s = os.lstat(self._daemon.path(path))
            self.write(struct.pack("<4s3I", b"STAT", s.st_mode, s.st_size & 0xFFFFFFFF, int(s.st_mtime)))
        except OSError:
            self.write(struct.pack("<4s3I", b"STAT", 0, 0, 0))

    def _stat_2(self, name: bytes, path: bytes, look: Callable[[Path], os.stat_result]) -> None:
        form = "<4sI2Q4IQ3q"
        try:
            s = look(self._daemon.path(path))
            times = int(s.st_atime), int(s.st_mtime), int(s.st_ctime)
            self.write(struct.pack(form, name, 0, s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size, *times))
        except OSError as error:
            self.write(struct.pack(form, name, error.errno, *[0] * 10))

    def _list(self, path: bytes) -> None:
        folder = self._daemon.path(path)
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            s, name = entry.lstat(), os.fsencode(entry.name)
            self.write(struct.pack("<4s4I", b"DENT", s.st_mode, s.st_size & 0xFFFFFFFF, int(s.st_mtime), len(name)) + name)
        self.write(struct.pack("<4s4I", b"DONE", 0, 0, 0, 0))

    def _receive(self, target: bytes) -> None:
        """A file from the client."""
        device_path, _, mode = target.rpartition(b",")
        path, content, failed = self._daemon.path(device_path), b"", self._daemon.faults.push
        while True:
            name, length = struct.unpack("<4sI", self.read(8))
            if name == b"DONE":
                break
            content += self.read(length)
        try:
            if not failed:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._daemon.install(content))
                path.chmod(stat.S_IMODE(int(mode)) | stat.S_IRUSR)
        except OSError as error:
            failed = f"couldn't create file: {error.strerror}"
        if failed:
            self.write(struct.pack("<4sI", b"FAIL", len(failed)) + failed.encode())
        else:
            self.write(struct.pack("<4sI", b"OKAY", 0))

    def _send(self, path: bytes) -> None:
        """A file to the client."""
        try:
            content = self._daemon.path(path).read_bytes()
        except OSError as error:
            said = f"open failed: {error.strerror}".encode()
            self.write(struct.pack("<4sI", b"FAIL", len(said)) + said)
            return
        for at in range(0, len(content), 64 * 1024):
            part = content[at : at + 64 * 1024]
            self.write(struct.pack("<4sI", b"DATA", len(part)) + part)
        self.write(struct.pack("<4sI", b"DONE", 0))
