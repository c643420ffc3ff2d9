"""Runs on the node, once at each boot: turns what the deployer said into ``/etc/kolejka/kolejka.toml``.

Sources, later ones win: the image's defaults; DHCP (option 224 and the host name); kernel words; credentials
(systemd's: SMBIOS, fw_cfg; EFI variables); a configuration partition, files injected into the initrd, a NoCloud seed.
Each is read by a pure function into a ``Source``; ``merge`` lays them over one another; ``write`` puts the outcome
below ``/run/kolejka/node``, where root only reads it.

A value that is no good is left out, with one line that names its place and the cure: on the console, since a node has
nobody else to tell. A secret on the kernel command line is refused, because every program on the machine can read it
there; the line does not repeat it.
"""

from __future__ import annotations

import binascii
import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kolejka.common.errors import InputError
from kolejka.common.settings import Section, Setting

PLACE: Final = Path("/run/kolejka/node")
KEYS_FILE: Final = Path("/run/kolejka/ssh/authorized_keys")
HOSTS_FILE: Final = Path("/etc/hosts")
TIME_FILE: Final = Path("/run/systemd/timesyncd.conf.d/kolejka.conf")
SHORT: Final = {
    "server": ("client", "server"), "name": ("foreman", "name"), "queues": ("foreman", "queues"), "tags": ("foreman",
    "tags"),
    "prove": ("foreman", "prove"),
}  # fmt: skip
"""What deployers say most, by a word of its own: ``kolejka.server=…``."""
BOOT_WORDS: Final = frozenset({"from", "image", "sha256", "layer", "layer_sha256", "scratch"})
"""Words of the boot script, which the settings do not know."""
FILES: Final = ("kolejka.toml", "token", "ca.pem", "authorized_keys", "ntp")
"""What a configuration partition, or the folder ``kolejka`` of an initrd, may hold."""
VARIABLES: Final = "6b6f6c65-6a6b-4a00-8000-6b6f6c656a6b"
"""The vendor's GUID of our EFI variables: ``kolejka.token-6b6f6c65-…``."""
SITE_OPTION: Final = "OPTION_224"
OWN: Final = {("client", "token_file"), ("client", "ca")}
"""Settings that this program sets itself, by where it put the file."""


@dataclass(frozen=True)
class Source:
    """What one source said; ``None`` and empty mean that it said nothing of it."""

    name: str
    settings: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    token: str | None = field(default=None, repr=False)
    ca: str | None = None
    keys: tuple[str, ...] = ()
    """of ssh"""
    ntp: tuple[str, ...] = ()
    host: str | None = None
    complaints: tuple[str, ...] = ()


class _Reading:
    """Gathers a source word by word."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._settings: dict[tuple[str, str], Any] = {}
        self._said: dict[str, Any] = {}
        self._complaints: list[str] = []

    def complain(self, place: str, text: str) -> None:
        self._complaints.append(f"{self._name}: {place}: {text}")

    def setting(self, section: str, key: str, value: Any, place: str, *, public: bool = False) -> None:
        """Take a setting if it is declared and its value is one."""
        declared = _declared(section, key)
        if declared is None:
            known = sorted(s.name for s in Section.SECTIONS[section].declared()) if section in Section.SECTIONS else []
            words = f"[{section}] has {', '.join(known)}" if known else f"sections are {', '.join(Section.SECTIONS)}"
            self.complain(place, f"there is no such setting; {words}")
        elif public and declared.secret:
            self.complain(place, "refused: every program reads it there; give secrets by a credential or a file")
        else:
            try:
                declared.parse(value, place)
            except InputError as error:
                shown = "its value is no good" if declared.secret else error.message
                self.complain(place, shown)
            else:
                self._settings[section, key] = value

    def token(self, text: str, place: str) -> None:
        word = text.strip()
        if word and not re.search(r"\s", word):
            self._said["token"] = word
        else:
            self.complain(place, "this is no token: it should be one word")

    def ca(self, text: str, place: str) -> None:
        if "-----BEGIN CERTIFICATE-----" in text:
            self._said["ca"] = text.strip() + "\n"
        else:
            self.complain(place, "this is no certificate in PEM form")

    def keys(self, lines: Iterable[str], place: str) -> None:
        good = []
        for line in (line.strip() for line in lines):
            if not line or line.startswith("#"):
                continue
            if re.match(r"(ssh-|ecdsa-|sk-)[\w@.-]+ [A-Za-z0-9+/=]{40,}( |$)", line):
                good.append(line)
            else:
                self.complain(place, "this is no public key as ssh-keygen writes it: " + line[:20] + "…")
        if good:
            self._said["keys"] = tuple(good)

    def ntp(self, words: Iterable[str], place: str) -> None:
        found = tuple(words)
        bad = [word for word in found if not re.fullmatch(r"[A-Za-z0-9.:-]+", word)]
        if bad:
            self.complain(place, f"{bad[0]!r} is no time server")
        elif found:
            self._said["ntp"] = found

    def host(self, text: str, place: str) -> None:
        name = text.strip().strip('"').split(".")[0].lower()
        if re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,62})", name):
            self._said["host"] = name
        else:
            self.complain(place, f"{text.strip()!r} is no host name")

    def done(self) -> Source:
        return Source(self._name, self._settings, complaints=tuple(self._complaints), **self._said)


def _declared(section: str, key: str) -> Setting | None:
    kind = Section.SECTIONS.get(section)
    return next((s for s in kind.declared() if s.name == key), None) if kind else None


def from_words(text: str, name: str = "kernel command line") -> Source:
    """``kolejka.server=… kolejka.foreman.slots=4``; other words are not ours. What is said here everybody reads."""
    reading = _Reading(name)
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    for word in words:
        full, equals, value = word.partition("=")
        if not full.startswith("kolejka."):
            continue
        key = full.removeprefix("kolejka.")
        if key in BOOT_WORDS:
            continue
        if not equals:
            reading.complain(full, "this word needs a value: " + full + "=…")
        elif key in SHORT:
            reading.setting(*SHORT[key], _flagged(SHORT[key], value), full, public=True)
        elif key == "ssh_key":
            reading.keys([value], full)
        elif key == "ntp":
            reading.ntp(filter(None, value.split(",")), full)
        elif key in {"token", "ca"}:
            reading.complain(
                full, "refused: every program reads it there; give it as a credential or a file"
                if key == "token" else "give certificates as a credential or a file",
            )  # fmt: skip
        elif key.count(".") == 1:
            section, _, setting = key.partition(".")
            reading.setting(section, setting, _flagged((section, setting), value), full, public=True)
        else:
            short = ", ".join(f"kolejka.{word}" for word in (*SHORT, "ssh_key", "ntp"))
            reading.complain(full, f"there is no such word; use {short} or kolejka.SECTION.KEY")
    return reading.done()


def _flagged(place: tuple[str, str], value: str) -> str:
    """``1`` and ``0`` for flags, as kernel words are usually written."""
    declared = _declared(*place)
    if declared is not None and declared.kind == "flag":
        return {"1": "true", "0": "false"}.get(value, value)
    return value


def from_lease(text: str) -> Source:
    """A lease as systemd-networkd keeps it: the host's name, and our words in option 224."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    reading = _Reading("DHCP")
    if "HOSTNAME" in values:
        reading.host(values["HOSTNAME"], "host name")
    heard = reading.done()
    if SITE_OPTION not in values:
        return heard
    try:
        words = binascii.unhexlify(values[SITE_OPTION].strip()).rstrip(b"\0").decode()
    except ValueError:
        return dataclasses.replace(heard, complaints=(*heard.complaints, "DHCP: option 224: this is no text"))
    said = from_words(words, "DHCP option 224")
    return dataclasses.replace(said, host=heard.host, complaints=(*heard.complaints, *said.complaints))


def from_toml(text: str, name: str) -> Source:
    """A ``kolejka.toml``."""
    reading = _Reading(name)
    _read_toml(reading, text)
    return reading.done()


def _read_toml(reading: _Reading, text: str) -> None:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reading.complain("kolejka.toml", f"this is not TOML: {error}")
        return
    _read_tables(reading, tables)


def _read_tables(reading: _Reading, tables: Mapping[str, Any]) -> None:
    for section, table in tables.items():
        if not isinstance(table, Mapping):
            reading.complain(str(section), f"this should be a table; sections are {', '.join(Section.SECTIONS)}")
            continue
        for key, value in table.items():
            reading.setting(str(section), str(key), value, f"[{section}] {key}")


def from_files(files: Mapping[str, bytes], name: str) -> Source:
    """A folder: ``kolejka.toml``, ``token``, ``ca.pem``, ``authorized_keys``, ``ntp``; others are complained of."""
    reading = _Reading(name)
    takers: Mapping[str, Callable[[str], None]] = {
        "kolejka.toml": lambda text: _read_toml(reading, text),
        "token": lambda text: reading.token(text, "token"),
        "ca.pem": lambda text: reading.ca(text, "ca.pem"),
        "authorized_keys": lambda text: reading.keys(text.splitlines(), "authorized_keys"),
        "ntp": lambda text: reading.ntp(text.split(), "ntp"),
    }
    for file, content in sorted(files.items()):
        try:
            text = content.decode()
        except UnicodeDecodeError:
            reading.complain(file, "this is no text in UTF-8")
            continue
        if file in takers:
            takers[file](text)
        else:
            reading.complain(file, f"nobody reads this file; known are {', '.join(FILES)}")
    return reading.done()


def from_credentials(credentials: Mapping[str, bytes], name: str = "credentials") -> Source:
    """``kolejka.token``, ``kolejka.ca``, ``kolejka.config`` (a kolejka.toml), ``kolejka.ssh_keys``, ``kolejka.ntp``,
    and ``kolejka.SECTION.KEY``. Other people's credentials are not ours.
    """
    whole = {"config": "kolejka.toml", "token": "token", "ca": "ca.pem", "ssh_keys": "authorized_keys", "ntp": "ntp"}
    files: dict[str, bytes] = {}
    reading = _Reading(name)
    for full, content in sorted(credentials.items()):
        key = full.removeprefix("kolejka.")
        if not full.startswith("kolejka."):
            continue
        if key in whole:
            files[whole[key]] = content
        elif key.count(".") == 1:
            section, _, setting = key.partition(".")
            value = content.decode(errors="replace").strip()
            reading.setting(section, setting, _flagged((section, setting), value), full)
        else:
            known = ", ".join(f"kolejka.{word}" for word in whole)
            reading.complain(full, f"there is no such credential; use {known} or kolejka.SECTION.KEY")
    single, several = reading.done(), from_files(files, name)
    return dataclasses.replace(
        several, settings={**several.settings, **single.settings}, complaints=(*several.complaints, *single.complaints)
    )


def from_variables(variables: Mapping[str, bytes]) -> Source:
    """EFI variables of our GUID, whose names are those of credentials; four bytes of attributes come first."""
    found = {}
    for full, content in variables.items():
        name, dash, guid = full.partition("-")
        if dash and guid.lower() == VARIABLES:
            found[name] = content[4:]
    return from_credentials(found, "EFI variables")


def from_seed(user_data: str, meta_data: str) -> Source:
    """A NoCloud seed: ``hostname``, ``ssh_authorized_keys``, ``ntp`` (``servers``), and our settings below ``kolejka``,
    with ``token`` and ``ca`` among them. Other keys of a cloud-config are complained of.
    """
    import yaml

    reading = _Reading("NoCloud seed")
    documents = []
    for place, text in (("meta-data", meta_data), ("user-data", user_data)):
        try:
            document = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            reading.complain(place, f"this is not YAML: {str(error).splitlines()[0]}")
            document = {}
        if not isinstance(document, Mapping):
            reading.complain(place, "this should be names and values")
            document = {}
        documents.append(document)
    meta, user = documents
    if user_data.strip() and not user_data.startswith("#cloud-config"):
        reading.complain("user-data", "the first line should be #cloud-config")
        user = {}
    host = user.get("hostname") or meta.get("local-hostname")
    if host:
        reading.host(str(host), "hostname")
    keys = user.get("ssh_authorized_keys") or meta.get("public-keys") or []
    reading.keys([str(key) for key in (keys.values() if isinstance(keys, Mapping) else keys)], "ssh_authorized_keys")
    ours = user.get("kolejka") or {}
    if isinstance(ours, Mapping):
        ours = dict(ours)
        if "token" in ours:
            reading.token(str(ours.pop("token")), "kolejka: token")
        if "ca" in ours:
            reading.ca(str(ours.pop("ca")), "kolejka: ca")
        _read_tables(reading, ours)
    else:
        reading.complain("kolejka", "this should be names and values")
    if isinstance(ntp := user.get("ntp") or {}, Mapping):
        reading.ntp([str(word) for word in ntp.get("servers") or []], "ntp")
    for key in user.keys() - {"hostname", "ssh_authorized_keys", "kolejka", "ntp"}:
        reading.complain(str(key), "a node does not do this; known are hostname, ssh_authorized_keys, ntp, kolejka")
    return reading.done()


def merge(sources: Iterable[Source]) -> Source:
    """One source that says what all said, later ones winning value by value; complaints are kept of each."""
    whole = Source("node")
    for source in sources:
        whole = Source(
            "node",
            {**whole.settings, **source.settings},
            source.token or whole.token,
            source.ca or whole.ca,
            source.keys or whole.keys,
            source.ntp or whole.ntp,
            source.host or whole.host,
            (*whole.complaints, *source.complaints),
        )
    return whole


def to_toml(settings: Mapping[tuple[str, str], Any]) -> str:
    """Settings as ``kolejka.toml``."""
    lines: list[str] = []
    for section in sorted({section for section, _ in settings}):
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml(value)}" for (found, key), value in sorted(settings.items()) if found == section]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return str(value)


def host_name(node: Source, address: str) -> str:
    """The machine's name: the node's, if it can be one, else what DHCP or a seed said, else one made of its address."""
    named = re.sub(r"[^a-z0-9-]+", "-", str(node.settings.get(("foreman", "name"), "")).lower()).strip("-")[:63]
    return named or node.host or ("node-" + address.replace(":", "") if address else "node")


# What follows acts.


def gather() -> list[Source]:
    """All sources of this machine, in rising order."""
    found = []
    defaults = Path("/usr/lib/kolejka/defaults.toml")
    if defaults.is_file():
        found.append(from_toml(defaults.read_text(encoding="utf-8"), "the image's defaults"))
    leases = sorted(Path("/run/systemd/netif/leases").glob("*"))
    found += [from_lease(lease.read_text(encoding="utf-8", errors="replace")) for lease in leases]
    found.append(from_words(Path("/proc/cmdline").read_text(encoding="utf-8", errors="replace")))
    found.append(from_credentials(_files(Path("/run/credentials/@system"), "kolejka.*")))
    found.append(from_variables(_files(Path("/sys/firmware/efi/efivars"), f"kolejka.*-{VARIABLES}")))
    found.append(from_files(_files(Path("/run/kolejka/boot/medium/kolejka/config")), "configuration on the medium"))
    for label in ("KOLEJKA", "KOLEJKA-CFG"):
        device = Path("/dev/disk/by-label", label)
        if device.exists() and not Path("/run/kolejka/boot/medium/kolejka/config").is_dir():
            folder = "kolejka/config" if label == "KOLEJKA" else "kolejka"
            found.append(from_files(_on_disk(device, folder), f"file system {label}"))
    found.append(from_files(_files(Path("/run/kolejka/injected")), "files in the initrd"))
    for label in ("cidata", "CIDATA"):
        device = Path("/dev/disk/by-label", label)
        if device.exists():
            seed = {name: text.decode(errors="replace") for name, text in _on_disk(device, ".").items()}
            found.append(from_seed(seed.get("user-data", ""), seed.get("meta-data", "")))
    return found


def _files(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


def _on_disk(device: Path, folder: str) -> dict[str, bytes]:
    """The files in a folder of a file system, which is mounted for the time of reading."""
    with tempfile.TemporaryDirectory(prefix="kolejka-medium-") as place:
        done = subprocess.run(
            ["mount", "-o", "ro,nodev,nosuid,noexec", device, place], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"kolejka: {device.name}: cannot be mounted: {done.stderr.strip()}", flush=True)
            return {}
        try:
            return _files(Path(place, folder))
        finally:
            subprocess.run(["umount", place], check=True)


def _address() -> str:
    """The hardware address of the first wired interface."""
    for interface in sorted(Path("/sys/class/net").iterdir()):
        if (interface / "device").exists() and (interface / "type").read_text().strip() == "1":
            return (interface / "address").read_text().strip()
    return ""


def _put(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
    fresh.rename(path)


def write(node: Source, place: Path = PLACE) -> None:
    """Lay down what the daemons read; only root reads it."""
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)
    settings = dict(node.settings)
    if node.token is not None:
        _put(place / "token", node.token + "\n", 0o600)
        settings["client", "token_file"] = str(place / "token")
    if node.ca is not None:
        _put(place / "ca.pem", node.ca, 0o600)
        settings["client", "ca"] = str(place / "ca.pem")
    _put(place / "kolejka.toml", to_toml(settings), 0o600)


def main() -> None:
    """Gather, merge, write, and tell the system's own programs."""
    node = merge(gather())
    for complaint in node.complaints:
        print(f"kolejka: {complaint}", flush=True)
    name = host_name(node, _address())
    socket.sethostname(name)
    _put(HOSTS_FILE, f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n", 0o644)
    write(node)
    if node.keys:
        _put(KEYS_FILE, "\n".join(node.keys) + "\n", 0o644)
    if node.ntp:
        _put(TIME_FILE, f"[Time]\nNTP={' '.join(node.ntp)}\n", 0o644)
        subprocess.run(["systemctl", "--no-block", "try-restart", "systemd-timesyncd.service"], check=False)


if __name__ == "__main__":
    sys.exit(main())
