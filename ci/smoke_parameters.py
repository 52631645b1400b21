"""Print a notebook's table of ``smoke_parameters.toml`` as one line that papermill reads (JSON is YAML)."""

import json
import sys
import tomllib
from pathlib import Path

path = Path(__file__).with_suffix(".toml")
tables = tomllib.loads(path.read_text(encoding="utf-8"))
stem = sys.argv[1]
if stem not in tables:
    sys.exit(f"{path.name} has no table [{stem}]; add one with parameters that finish in seconds")
print(json.dumps(tables[stem]))
