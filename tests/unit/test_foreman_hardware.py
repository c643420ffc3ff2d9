"""What doctor says of the hardware features that timing depends on: recorded machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from kolejka.foreman.hardware import checks

SWAPS = "Filename\tType\tSize\tUsed\tPriority\n"


def machine(root: Path, files: dict[str, str]) -> dict[str, str]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    found = list(checks(root))
    assert all(check.ok and not check.required for check in found), "information, no fault"
    return {check.check.removeprefix("timing: "): check.message.partition(":")[0] for check in found}


CPU = "sys/devices/system/cpu/"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, {"SMT": "unknown", "governor": "none", "turbo": "unknown", "ASLR": "unknown", "swap": "off"}),
        (
            {CPU + "smt/active": "1", CPU + "cpu0/cpufreq/scaling_governor": "powersave",
             CPU + "cpu1/cpufreq/scaling_governor": "performance", CPU + "intel_pstate/no_turbo": "0",
             "proc/sys/kernel/randomize_va_space": "2", "proc/swaps": SWAPS + "/dev/sda2 partition 1 0 -2"},
            {"SMT": "on", "governor": "performance powersave", "turbo": "on", "ASLR": "on", "swap": "on"},
        ),
        (
            {CPU + "smt/active": "0", CPU + "cpu0/cpufreq/scaling_governor": "performance", CPU + "cpufreq/boost": "0",
             "proc/sys/kernel/randomize_va_space": "0", "proc/swaps": SWAPS.strip()},
            {"SMT": "off", "governor": "performance", "turbo": "off", "ASLR": "off", "swap": "off"},
        ),
        ({CPU + "cpufreq/boost": "1"}, {"turbo": "on"}),
    ],
)  # fmt: skip
def test_features_are_told_as_they_are(tmp_path: Path, files: dict[str, str], words: dict[str, str]) -> None:
    assert words.items() <= machine(tmp_path, files).items()
