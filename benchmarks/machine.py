"""What a measurement was made on, as records and pages say it."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """The name of the processor, and how many cores of it there are."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()} ({os.cpu_count()} cores)"
