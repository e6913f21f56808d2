"""What a page of results holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MEGABYTE = 10**6
DATA = '<script type="application/json" id="data">'


def data_of(page: Path) -> dict[str, Any]:
    """The data of its charts."""
    found = re.search(f"{DATA}(.*?)</script>", page.read_text(), re.S)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def text_of(page: Path) -> str:
    """What is said outside of the data and the scripts."""
    return " ".join(re.sub(r"<[^>]+>", " ", page.read_text().split(DATA[:38])[0]).split())
