"""Runs the code blocks of the README in order, against the outpace that the README configures.

A block that cannot run has a comment ``<!-- not run: REASON -->`` in the line above it.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import unittest
from pathlib import Path
from typing import Any, Dict, List, Tuple
from unittest import mock

from support import Server

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(?:<!-- ([^\n]*) -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks() -> List[Tuple[str, str, str]]:
    """Returns the remark, the language and the text of each block."""
    return [(remark, kind, text) for remark, kind, text in BLOCK.findall(README.read_text())]


class Readme(unittest.TestCase):
    def test_every_block_runs_or_says_why_not(self) -> None:
        ran = 0
        configuration = "".join(text for remark, kind, text in blocks() if kind == "yaml")
        names: Dict[str, Any] = {"charge": lambda: "charged", "ask_model": lambda: (200, 740)}
        with Server(configuration) as server:
            with mock.patch.dict(os.environ, {"OUTPACE_URL": server.url}):
                for remark, kind, text in blocks():
                    if kind == "yaml":
                        continue
                    if remark.startswith("not run: "):
                        self.assertGreater(len(remark), 20, text)
                        continue
                    self.assertEqual(kind, "python", text)
                    with self.subTest(text):
                        self.run_block(text, names)
                        ran += 1
        self.assertGreaterEqual(ran, 5)

    def run_block(self, text: str, names: Dict[str, Any]) -> None:
        """Runs a block, which may use ``await`` outside of functions."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(text, str(README), "exec", flags=flags)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(self.await_block(code, names))
        else:
            exec(code, names)

    async def await_block(self, code: Any, names: Dict[str, Any]) -> None:
        """Awaits a block."""
        await eval(code, names)


if __name__ == "__main__":
    unittest.main()
