"""What has been measured until now: one file that each run adds its scenarios to.

A scenario that is run again takes the old one's place, with its own date, machine and command;
so a page may stand on several runs, and says of which.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FILE = "results.json"


@dataclass
class Results:
    """The file's contents, and where it is.

    Attributes:
      directory: where the file is, and the page and the plots that are made from it.
      scenarios: by name, as ``running.as_dict`` and ``idle_entry`` have them.
    """

    directory: Path
    scenarios: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> Results:
        """What is there; nothing if there is no file yet."""
        try:
            text = (directory / FILE).read_text()
        except FileNotFoundError:
            return cls(directory)
        return cls(directory, json.loads(text))

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Put a scenario in, and write the file: what is measured is not lost."""
        self.scenarios[name] = entry
        self.save(self.directory)

    def save(self, directory: Path) -> None:
        """Write the file, as a whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE
        part = path.with_suffix(".part")
        part.write_text(json.dumps(self.scenarios, indent=1) + "\n")
        part.replace(path)
