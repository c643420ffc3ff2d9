"""What a node makes of what its deployer said."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from image import configure
from image.configure import Source, merge
from kolejka.common.settings import ClientSettings, ForemanSettings

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZha2VmYWtlZmFrZWZha2VmYWtlZmFrZWZha2VmYWtl deployer@desk"
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def complaint(source: Source) -> str:
    """The one complaint."""
    assert len(source.complaints) == 1, source.complaints
    return source.complaints[0]


def test_kernel_words_have_short_names_and_every_setting_a_long_one() -> None:
    words = "BOOT_IMAGE=/vmlinuz quiet kolejka.server=https://k.example.org kolejka.queues=a,b kolejka.name=lab-01 "
    words += 'kolejka.tags="room:1077 fast" kolejka.foreman.slots=4 kolejka.client.direct=0 kolejka.image=http://x/y'
    source = configure.from_words(words)
    assert source.complaints == ()
    assert source.settings == {
        ("client", "server"): "https://k.example.org", ("foreman", "queues"): "a,b", ("foreman", "name"): "lab-01",
        ("foreman", "tags"): "room:1077 fast", ("foreman", "slots"): "4", ("client", "direct"): "false",
    }  # fmt: skip


@pytest.mark.parametrize("word", ["kolejka.token", "kolejka.client.token"])
def test_a_secret_on_the_kernel_command_line_is_refused_and_not_repeated(word: str) -> None:
    source = configure.from_words(f"{word}=klj_verysecret kolejka.name=n")
    assert source.token is None
    assert source.settings == {("foreman", "name"): "n"}
    assert word in complaint(source)
    assert "refused" in complaint(source)
    assert "verysecret" not in complaint(source)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("kolejka.sever=x", "there is no such word; use kolejka.server"),
        ("kolejka.foreman.slot=4", "[foreman] has"),
        ("kolejka.formen.slots=4", "sections are"),
        ("kolejka.foreman.slots=four", "'four'"),
        ("kolejka.server", "needs a value"),
        ("kolejka.ntp=a;b", "no time server"),
        ("kolejka.ssh_key=none", "no public key"),
    ],
)
def test_a_bad_word_is_one_line_that_names_it_and_changes_nothing(word: str, said: str) -> None:
    source = configure.from_words(f"{word} kolejka.name=n")
    assert source.settings == {("foreman", "name"): "n"}
    assert said in complaint(source)
    assert word.partition("=")[0] in complaint(source)
    assert "\n" not in complaint(source)


def test_dhcp_gives_the_hosts_name_and_words_of_the_site() -> None:
    option = b"kolejka.server=https://k.example.org kolejka.ntp=10.0.0.1".hex()
    source = configure.from_lease(f"# made\nADDRESS=10.0.0.7\nHOSTNAME=Lab-07.example.org\nOPTION_224={option}\n")
    assert (source.host, source.ntp) == ("lab-07", ("10.0.0.1",))
    assert source.settings == {("client", "server"): "https://k.example.org"}
    assert "option 224" in complaint(configure.from_lease("OPTION_224=zz\n"))
    assert "no host name" in complaint(configure.from_lease("HOSTNAME=-;rm\n"))


def test_a_folder_holds_settings_token_authority_and_keys() -> None:
    toml = b"[foreman]\ntags = ['a']\ncapacity = {memory = '1G'}\nslot = 3\n"
    files = {"kolejka.toml": toml, "token": b"klj_a\n", "ca.pem": CA.encode(), "authorized_keys": KEY.encode()}
    source = configure.from_files({**files, "notes.txt": b"x"}, "stick")
    assert (source.token, source.ca, source.keys) == ("klj_a", CA, (KEY,))
    assert source.settings == {("foreman", "tags"): ["a"], ("foreman", "capacity"): {"memory": "1G"}}
    said = "\n".join(source.complaints)
    assert "stick: [foreman] slot" in said
    assert "notes.txt: nobody reads this file" in said
    assert "this is not TOML" in complaint(configure.from_files({"kolejka.toml": b"["}, "stick"))
    assert "UTF-8" in complaint(configure.from_files({"token": b"\xff"}, "stick"))
    assert "one word" in complaint(configure.from_files({"token": b"two words"}, "stick"))
    assert "PEM" in complaint(configure.from_files({"ca.pem": b"x"}, "stick"))


def test_credentials_are_ours_by_their_names() -> None:
    source = configure.from_credentials({
        "kolejka.token": b"klj_a", "kolejka.config": b"[foreman]\nslots = 2\n", "kolejka.foreman.slots": b"3",
        "kolejka.client.token": b"klj_b", "passwd.hashed-password.root": b"x",
    })  # fmt: skip
    assert source.complaints == ()
    assert source.token == "klj_a"
    assert source.settings == {("foreman", "slots"): "3", ("client", "token"): "klj_b"}
    assert "there is no such credential" in complaint(configure.from_credentials({"kolejka.tokn": b"x"}))


def test_efi_variables_are_credentials_behind_four_bytes() -> None:
    names = {f"kolejka.token-{configure.VARIABLES}": b"\7\0\0\0klj_a", "Boot0000-8be4df61": b"\7\0\0\0x"}
    assert configure.from_variables(names).token == "klj_a"


def test_a_seed_of_a_cloud_says_what_a_node_understands() -> None:
    user = f"#cloud-config\nhostname: n1\nssh_authorized_keys: ['{KEY}']\nntp: {{servers: [10.0.0.1]}}\n"
    user += "kolejka:\n  token: klj_a\n  client: {server: 'https://k'}\n  foreman: {tags: [x, y], slots: 2}\n"
    source = configure.from_seed(user, "local-hostname: other\n")
    assert source.complaints == ()
    assert (source.token, source.host, source.keys, source.ntp) == ("klj_a", "n1", (KEY,), ("10.0.0.1",))
    assert source.settings["foreman", "tags"] == ["x", "y"]
    assert configure.from_seed("", "local-hostname: other\n").host == "other"
    assert "runcmd: a node does not do this" in complaint(configure.from_seed("#cloud-config\nruncmd: [x]\n", ""))
    assert "#cloud-config" in complaint(configure.from_seed("#!/bin/sh\n", ""))
    assert "not YAML" in complaint(configure.from_seed("#cloud-config\na: [\n", ""))


def test_later_sources_win_value_by_value_and_every_complaint_is_kept() -> None:
    low = Source("a", {("client", "server"): "a", ("foreman", "slots"): 1}, token="t1", host="h", complaints=("1",))
    high = Source("b", {("client", "server"): "b"}, ca=CA, complaints=("2",))
    node = merge([low, high])
    assert node.settings == {("client", "server"): "b", ("foreman", "slots"): 1}
    assert (node.token, node.ca, node.host, node.complaints) == ("t1", CA, "h", ("1", "2"))
    assert "t1" not in repr(node)


def test_what_is_written_is_roots_and_read_by_the_programs(tmp_path: Path) -> None:
    sources = [
        configure.from_words('kolejka.name="Łódź \\"1\\"" kolejka.tags=a,b kolejka.server=https://k'),
        configure.from_toml("[foreman]\ncapacity = {memory = '1G', cpus = 2, network = true}\nwait = 12.5\n", "x"),
        configure.from_files({"token": b"klj_a", "ca.pem": CA.encode()}, "y"),
    ]
    place = tmp_path / "node"
    configure.write(merge(sources), place)
    for name in ("kolejka.toml", "token", "ca.pem"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    tomllib.loads((place / "kolejka.toml").read_text(encoding="utf-8"))
    empty = {"XDG_CONFIG_HOME": str(tmp_path / "none")}
    foreman = ForemanSettings.load(config=place / "kolejka.toml", environment=empty)
    client = ClientSettings.load(config=place / "kolejka.toml", environment=empty)
    assert (foreman.name, foreman.tags, foreman.wait) == ('Łódź "1"', ("a", "b"), 12.5)
    assert foreman.capacity.values == {"memory": 1 << 30, "cpus": 2, "network": True}
    assert (client.server, client.token_file, client.ca) == ("https://k", f"{place}/token", f"{place}/ca.pem")
    assert "klj_a" not in (place / "kolejka.toml").read_text()


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (Source("n", {("foreman", "name"): "Lab 01"}, host="x"), "lab-01"),
        (Source("n", host="dhcp"), "dhcp"),
        (Source("n"), "node-525400123456"),
    ],
)
def test_a_machine_is_named_by_the_node_by_dhcp_or_by_its_address(node: Source, name: str) -> None:
    assert configure.host_name(node, "52:54:00:12:34:56") == name
