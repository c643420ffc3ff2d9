"""The bootable image of a node: Debian, this very tree, and nothing that is a secret or a state.

``recipe`` says what goes in (values, no acts), ``build`` makes kernel, initrd and squashfs of it, ``media`` what
machines boot from (UEFI disk, ISO, iPXE). ``root/`` lies over the root file system, ``boot/`` goes into the initrd,
``configure`` runs on the node and turns what the deployer said into ``/etc/kolejka/kolejka.toml``. ``python -m image
--help``.
"""
