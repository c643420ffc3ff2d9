"""What all command lines share: options derived from declarations, errors as one line, the umbrella command.

Imports ``kolejka.common`` and click only. The command files of each package import this one; nothing else does.
"""
