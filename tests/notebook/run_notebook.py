"""Runs a notebook from its first cell to its last, as `jupyter execute` does; what it showed goes to another file.

    JUPYTER_DATA_DIR=DIR python3 run_notebook.py NOTEBOOK [OUTPUT]
"""
import os
import sys

import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
for cell in notebook.cells:
    assert not cell.get("outputs") and cell.get("execution_count") is None, "a notebook in the tree has no outputs"
NotebookClient(
    notebook, timeout=120, startup_timeout=60, resources={"metadata": {"path": os.path.dirname(os.path.abspath(sys.argv[1]))}}
).execute()
if len(sys.argv) > 2:
    nbformat.write(notebook, sys.argv[2])
count = {}
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        for kind in output.get("data", {}) or [output["output_type"]]:
            count[kind] = count.get(kind, 0) + 1
print(" ".join("%s=%d" % item for item in sorted(count.items())))
