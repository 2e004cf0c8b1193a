"""The tests themselves: what runs all folders at once finds every file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def test_no_two_files_of_tests_have_one_name() -> None:
    """`make soak` collects all folders together, and pytest knows a file by its name alone: two of one name, and nothing runs."""
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("*.py") if path.name not in ("__init__.py", "conftest.py"))
    assert [name for name, number in names.items() if number > 1] == []
