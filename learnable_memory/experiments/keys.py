"""What a run or an analysis is, as a short key that the results are looked up by."""

import hashlib
import json
from typing import Any


def digest(what: Any) -> str:
    """16 hexadecimal digits of what JSON can hold; anything else counts by its text."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
