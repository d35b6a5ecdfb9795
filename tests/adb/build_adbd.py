"""Builds adbd, the daemon of Android phones, for this machine: from Debian's source package of the client, which holds it too.

``python build_adbd.py`` prints the program's path; it is kept under ``~/.cache/qwtv2_edge/adbd``. Needs apt, dpkg-source, patch and g++, no
root; two minutes and 300 MB. The build listens on this machine only (the sources' default is every interface) and asks no key.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VERSION = "29.0.6"
HOME = Path.home() / ".cache" / "qwtv2_edge" / "adbd"
NEEDED = ("apt-get", "dpkg-source", "dpkg-deb", "g++", "gcc")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"

#: packages whose headers and libraries it is built against
LIBRARIES = ("android-libbase", "android-libcutils", "android-liblog", "android-libboringssl")
PACKAGES = (*LIBRARIES, *(f"{p}-dev" for p in LIBRARIES), "libcap-dev")

#: sources under system/core/adb
ADB = """adb adb_io adb_listeners adb_trace adb_unique_fd adb_utils fdevent/fdevent fdevent/fdevent_poll fdevent/fdevent_epoll services
sockets socket_spec sysdeps/errno transport transport_fd transport_local transport_usb types sysdeps_unix sysdeps/posix/network
daemon/auth daemon/jdwp_service daemon/usb_dummy daemon/file_sync_service daemon/services daemon/shell_service shell_service_protocol
adbconnection/adbconnection_server daemon/main"""
#: sources under system/core
CORE = "diagnose_usb/diagnose_usb libasyncio/AsyncIO"
#: folders of headers under system/core
HEADERS = """adb adb/daemon/include adb/adbconnection/include base/include diagnose_usb/include libcutils/include include
libcrypto_utils/include libasyncio/include"""
FLAGS = [
    *["-std=gnu++2a", "-O1", "-fpermissive", "-w", "-D_GNU_SOURCE", "-DADB_HOST=0", "-DALLOW_ADBD_ROOT=0", "-DALLOW_ADBD_NO_AUTH=1"],
    *["-DALLOW_ADBD_DISABLE_VERITY=0", "-DANDROID_BASE_UNIQUE_FD_DISABLE_IMPLICIT_CONVERSION=1"],
    f'-DPLATFORM_TOOLS_VERSION="{VERSION}"',
    f'-DADB_VERSION="{VERSION}"',
]

#: file under system/core, what is there, what must be there
EDITS = (
    (
        "base/include/android-base/thread_annotations.h",
        "#define THREAD_ANNOTATION_ATTRIBUTE__(x) __attribute__((x))",
        "#define THREAD_ANNOTATION_ATTRIBUTE__(x)",
    ),
    ("adb/daemon/main.cpp", 'addrs.push_back(android::base::StringPrintf("vsock:%d", port));', ""),
    (
        "adb/socket_spec.cpp",
        "network_inaddr_any_server(port, SOCK_STREAM, error)",
        "network_loopback_server(port, SOCK_STREAM, error, true)",
    ),
)

#: the part of Android that asks the user about keys; nobody is asked here
AUTHORIZATION = """
#include "adbd_auth.h"
#include <unistd.h>
struct AdbdAuthContext {};
extern "C" {
AdbdAuthContext* adbd_auth_new(AdbdAuthCallbacks*) { return new AdbdAuthContext; }
void adbd_auth_delete(AdbdAuthContext* c) { delete c; }
void adbd_auth_run(AdbdAuthContext*) { for (;;) pause(); }
void adbd_auth_get_public_keys(AdbdAuthContext*, bool (*)(const char*, size_t, void*), void*) {}
uint64_t adbd_auth_notify_auth(AdbdAuthContext*, const char*, size_t) { return 0; }
void adbd_auth_notify_disconnect(AdbdAuthContext*, uint64_t) {}
void adbd_auth_prompt_user(AdbdAuthContext*, const char*, size_t, void*) {}
bool adbd_auth_supports_feature(AdbdAuthFeature) { return false; }
}
"""


def program() -> Path:
    """adbd, built if it is not there. Raises FileNotFoundError: a tool is missing; subprocess.CalledProcessError: a step failed."""
    made = HOME / VERSION / "adbd"
    if not made.exists():
        lacking = [tool for tool in NEEDED if shutil.which(tool) is None]
        if lacking:
            raise FileNotFoundError(f"building adbd needs {', '.join(lacking)}")
        HOME.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HOME) as work:
            build(Path(work))
            (Path(work) / "out").rename(made.parent)
    return made


def build(work: Path) -> None:
    """``out/adbd`` and the libraries it needs, in a folder."""
    tree = fetch(work)
    system = work / "system"
    core, out = tree / "system/core", work / "out"
    for name, old, new in EDITS:
        text = (core / name).read_text()
        assert old in text, f"{name} has changed"
        (core / name).write_text(text.replace(old, new))
    (work / "authorization.cpp").write_text(AUTHORIZATION)
    headers = [core / h for h in HEADERS.split()]
    headers += [tree / "frameworks/native/libs/adbd_auth/include", system / "usr/include", system / "usr/include/android"]
    include = [f"-I{h}" for h in headers]
    (work / "objects").mkdir()

    def compile_(source: Path) -> Path:
        target = work / "objects" / (str(source.relative_to(work)).replace("/", "_") + ".o")
        flags = ["gcc", "-O1", "-w"] if source.suffix == ".c" else ["g++", *FLAGS]
        call([*flags, *include, "-c", source, "-o", target], work)
        return target

    sources = [core / "adb" / f"{s}.cpp" for s in ADB.split()] + [core / f"{s}.cpp" for s in CORE.split()]
    sources += [*(core / "libcrypto_utils").glob("android_pubkey.c*"), work / "authorization.cpp"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_, sources))
    out.mkdir()
    for library in (system / "usr/lib").glob("*/android/*.so*"):
        shutil.copy2(library, out, follow_symlinks=True)
    libraries = ["-lbase", "-lcutils", "-llog", "-lcrypto", "-lresolv", "-lutil", "-lpthread"]
    call(["g++", "-o", out / "adbd", *objects, f"-L{out}", "-Wl,--disable-new-dtags,-rpath,$ORIGIN", *libraries], work)


def fetch(work: Path) -> Path:
    """The unpacked sources; headers and libraries go to ``system``. apt's own list and state are left alone."""
    apt = work / "apt"
    (apt / "lists/partial").mkdir(parents=True)
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = call(["apt-get", "indextargets", "--format", form, "Created-By: Packages", "Origin: Debian"], work).splitlines()
    lines = [f"{kind} [signed-by={KEYS}] {t}" for t in dict.fromkeys(targets) for kind in ("deb", "deb-src")]
    (apt / "sources.list").write_text("\n".join(lines) + "\n")
    options = {
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
    }
    apt_get = ["apt-get", "--quiet", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    call([*apt_get, "update"], work)
    call([*apt_get, "source", "--download-only", "adb"], work)
    call([*apt_get, "download", *PACKAGES], work)
    for package in work.glob("*.deb"):
        call(["dpkg-deb", "--extract", package, work / "system"], work)
    (description,) = work.glob("android-platform-tools_*.dsc")
    call(["dpkg-source", "--no-check", "--extract", description, work / "tree"], work)
    return work / "tree"


def call(argv: list, folder: Path) -> str:
    """What a tool prints."""
    done = subprocess.run(list(map(str, argv)), cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-4000:])
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    print(program())
